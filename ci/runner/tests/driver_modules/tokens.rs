// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rust files as tokens, as far as paths can be found in them.

/// A word, `::`, or a single character of anything else.
#[derive(Clone, Copy, Debug)]
pub struct Token<'s> {
    pub text: &'s str,
    pub line: usize,
}

impl Token<'_> {
    pub fn is_word(&self) -> bool {
        self.text.starts_with(is_word_character)
    }
}

fn is_word_character(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Length of the string, of whatever kind, that `text` begins with.
fn string_length(text: &str) -> Option<usize> {
    let prefix = text.find(|c| !matches!(c, 'b' | 'c' | 'r'))?;
    let is_raw = text[..prefix].ends_with('r');
    let hashes = text[prefix..].find(|c| c != '#')?;
    let start = prefix + hashes + 1;
    if prefix > 2 || !text[prefix + hashes..].starts_with('"') || hashes > 0 && !is_raw {
        return None;
    }
    if is_raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(start + text[start..].find(&end)? + end.len());
    }
    let mut escaped = false;
    let end = text[start..].find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(start + end + 1)
}

/// Length of the block comment, in which there may be others, that `text` begins with.
fn block_comment_length(text: &str) -> Option<usize> {
    if !text.starts_with("/*") {
        return None;
    }
    let mut depth = 0;
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            at += rest.chars().next()?.len_utf8();
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Length of the literal of a character that `text` begins with; a lifetime is none.
fn character_length(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let first = rest.chars().next()?;
    let content = if first == '\\' {
        // At least one character is escaped.
        2 + rest.get(2..)?.find('\'')?
    } else {
        first.len_utf8()
    };
    rest[content..].starts_with('\'').then_some(content + 2)
}

/// The tokens of a file, without comments, strings and literals of characters.
pub fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut line = 1;
    while let Some(c) = source[at..].chars().next() {
        let text = &source[at..];
        let skipped = if text.starts_with("//") {
            Some(text.find('\n').unwrap_or(text.len()))
        } else {
            block_comment_length(text)
                .or_else(|| string_length(text))
                .or_else(|| character_length(text))
                .or_else(|| c.is_whitespace().then(|| c.len_utf8()))
        };
        let length = skipped.unwrap_or_else(|| {
            let length = if is_word_character(c) {
                text.find(|c| !is_word_character(c)).unwrap_or(text.len())
            } else if text.starts_with("::") {
                2
            } else {
                c.len_utf8()
            };
            let text = &text[..length];
            tokens.push(Token { text, line });
            length
        });
        line += text[..length].matches('\n').count();
        at += length;
    }
    tokens
}

/// Index behind what begins with the opening bracket at `open`.
pub fn end_of_brackets(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0;
    for (n, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return n + 1;
        }
    }
    tokens.len()
}

/// Leaves the modules of KUnit tests out.
pub fn without_tests<'s>(tokens: &[Token<'s>]) -> Vec<Token<'s>> {
    const ATTRIBUTE: [&str; 7] = ["#", "[", "kernel", "::", "macros", "::", "kunit_tests"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = tokens[at..].iter().map(|token| token.text);
        if begins.take(ATTRIBUTE.len()).eq(ATTRIBUTE) {
            let module = end_of_brackets(tokens, at + 1);
            let body = tokens[module..].iter().position(|token| token.text == "{");
            at = end_of_brackets(tokens, module + body.expect("a module with a body"));
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}
