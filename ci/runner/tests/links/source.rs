// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether a source file contains an item or a quotation.

/// Stands for lines that a quotation leaves out.
const GAP: &str = "// ...";

/// Whether a text is the name of an item: identifiers joined by `::`, also of a call `f()` or a
/// macro `m!`.
pub(crate) fn is_item(text: &str) -> bool {
    identifiers(text).all(|name| {
        let mut letters = name.chars();
        letters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && letters.all(is_part)
    })
}

/// The first identifier of an item that is not in the text of a file outside of comments.
pub(crate) fn missing<'a>(text: &str, item: &'a str) -> Option<&'a str> {
    let code = without_comments(text);
    identifiers(item).find(|name| !words(&code).any(|word| word == *name))
}

/// The first line of a quotation that is not in the text after the line before it. Indentation does
/// not count; lines follow each other as in the text, unless a line `// ...` is between them.
pub(crate) fn misquoted<'a>(text: &str, quotation: &'a str) -> Option<&'a str> {
    let text: Vec<_> = text.lines().map(str::trim).collect();
    let lines: Vec<_> = quotation.lines().map(str::trim).collect();
    let mut from = 0;
    for part in lines.split(|line| *line == GAP) {
        let mut starts = from..(text.len() + 1).saturating_sub(part.len());
        match starts.find(|&start| text[start..start + part.len()] == *part) {
            Some(start) => from = start + part.len(),
            None => {
                let known =
                    |line: &&&str| text.get(from..).is_some_and(|text| text.contains(*line));
                let unknown = part.iter().find(|line| !known(line));
                return unknown.or(part.first()).copied();
            }
        }
    }
    None
}

fn identifiers(item: &str) -> impl Iterator<Item = &str> {
    let name = item.strip_suffix("()").unwrap_or(item);
    name.strip_suffix('!').unwrap_or(name).split("::")
}

fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !is_part(c))
}

/// The text without comments of Rust and C. A comment sign within a string counts too: such a line
/// is shortened, which never lets an item appear.
fn without_comments(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        code.push_str(&rest[..start]);
        let comment = &rest[start..];
        let end = match comment.starts_with("//") {
            true => comment.find('\n'),
            false => comment.find("*/").map(|end| end + 2),
        };
        // A comment separates words.
        code.push(' ');
        rest = end.map_or("", |end| &comment[end..]);
    }
    code + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_told_from_other_code() {
        for item in ["a", "A::b_2", "f()", "m!", "_x::Y::Z"] {
            assert!(is_item(item), "{item}");
        }
        for other in ["", "a.rs", "a b", "a::", "2a", "--size", "a/b", "a<B>"] {
            assert!(!is_item(other), "{other}");
        }
    }

    #[test]
    fn quotations_follow_the_text() {
        let text = "fn a() {\n    b();\n\n    c();\n}\n";
        for quotation in [
            "b();\n",
            "fn a() {\nb();\n",
            "fn a() {\n    // ...\n    c();\n",
            "",
        ] {
            assert_eq!(misquoted(text, quotation), None, "{quotation}");
        }
        for (quotation, line) in [
            ("d();\n", "d();"),
            ("b();\nc();\n", "b();"),
            ("c();\n// ...\nb();\n", "b();"),
            ("b();\nd();\n", "d();"),
        ] {
            assert_eq!(misquoted(text, quotation), Some(line), "{quotation}");
        }
    }

    #[test]
    fn items_occur_as_whole_words_of_code() {
        let text = "/* b */ impl Slot { // release\n  fn complete_all(self) {} }\nfn new/**/() {}";
        assert_eq!(missing(text, "Slot::complete_all"), None);
        assert_eq!(missing(text, "new()"), None);
        assert_eq!(missing(text, "Slot::complete"), Some("complete"));
        assert_eq!(missing(text, "Slot::release"), Some("release"));
        assert_eq!(missing(text, "b"), Some("b"));
    }
}
