// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The links of the documents are true: each file, heading and item that they name exists.
//!
//! A link whose text is an item in code format, such as
//! ``[`Slot::new`](../driver/queue/slot.rs)``, says that the item is in that file. A fenced block
//! `rust from=driver/queue/slot.rs` quotes that file. A line `@NAME@` is a placeholder that was not
//! filled in.

mod markdown;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};

use markdown::{Link, Page};

/// Documents outside of docs/.
const OTHERS: [&str; 5] = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "ci/README.md",
];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The Markdown files below a folder of the checkout, as paths in the checkout.
fn pages_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(checkout().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        if entry.path().is_dir() {
            found.extend(pages_below(&path));
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The texts of all documents, by their paths in the checkout.
fn texts() -> impl Iterator<Item = (PathBuf, String)> {
    let paths = pages_below(Path::new("docs")).into_iter();
    paths.chain(OTHERS.map(PathBuf::from)).map(|path| {
        let text = fs::read_to_string(checkout().join(&path)).unwrap();
        (path, text)
    })
}

/// All documents, by their paths in the checkout.
fn pages() -> BTreeMap<PathBuf, Page> {
    texts()
        .map(|(path, text)| (path, Page::parse(&text)))
        .collect()
}

/// Whether a line is a placeholder, such as `@OUTPUT@`.
fn is_placeholder(line: &str) -> bool {
    let name = line
        .strip_prefix('@')
        .and_then(|rest| rest.strip_suffix('@'));
    name.is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase()))
}

/// The path in the checkout to which a relative link of `page` leads. `None` if it leads out of
/// the checkout.
fn resolve(page: &Path, link: &str) -> Option<PathBuf> {
    let mut path = page.parent()?.to_path_buf();
    for part in Path::new(link).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir if path.pop() => {}
            _ => return None,
        }
    }
    Some(path)
}

/// The reason why a link is not true. `read` returns the text of a file, and `None` for a folder.
fn problem(
    pages: &BTreeMap<PathBuf, Page>,
    page: &Path,
    link: &Link,
    read: impl Fn(&Path) -> std::io::Result<Option<String>>,
) -> Option<String> {
    if link.target.contains("://") || link.target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = match link.target.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (link.target.as_str(), None),
    };
    let path = match file {
        "" => page.to_path_buf(),
        file => match resolve(page, file) {
            Some(path) => path,
            None => return Some("leads out of the checkout".into()),
        },
    };
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) => return Some(format!("{}: {error}", path.display())),
    };
    if let Some(anchor) = anchor {
        return match pages.get(&path) {
            Some(page) if page.anchors.contains(anchor) => None,
            Some(_) => Some(format!("{} has no heading #{anchor}", path.display())),
            None => Some(format!("{} is no document", path.display())),
        };
    }
    let item = link.item.as_deref()?;
    match text {
        None => Some(format!("{item} is to be in a file, not in a folder")),
        Some(_) if pages.contains_key(&path) => None,
        Some(text) => source::missing(&text, item)
            .map(|name| format!("{} does not contain {name}", path.display())),
    }
}

#[test]
fn links_are_true() {
    let pages = pages();
    let read = |path: &Path| {
        let path = checkout().join(path);
        match path.is_dir() {
            true => Ok(None),
            false => fs::read_to_string(path).map(Some),
        }
    };
    let mut problems = String::new();
    let mut items = 0;
    for (path, page) in &pages {
        for link in &page.links {
            items += usize::from(link.item.is_some());
            if let Some(problem) = problem(&pages, path, link, read) {
                let (path, target) = (path.display(), &link.target);
                let _ = writeln!(problems, "{path}:{}: ({target}) {problem}", link.line);
            }
        }
    }
    assert!(problems.is_empty(), "\n{problems}");
    assert!(items > 0, "no link names an item");
}

#[test]
fn quotations_are_true() {
    let mut problems = String::new();
    for (page, quotation) in pages()
        .iter()
        .flat_map(|(path, page)| page.quotations.iter().map(move |it| (path, it)))
    {
        let (page, path) = (page.display(), &quotation.path);
        let wrong = match fs::read_to_string(checkout().join(path)) {
            Ok(text) => source::misquoted(&text, &quotation.text)
                .map(|line| format!("{path} does not continue with: {line}")),
            Err(error) => Some(format!("{path}: {error}")),
        };
        if let Some(wrong) = wrong {
            let _ = writeln!(problems, "{page}: {wrong}");
        }
    }
    assert!(problems.is_empty(), "\n{problems}");
}

#[test]
fn no_document_has_a_placeholder() {
    let mut problems = String::new();
    for (path, text) in texts() {
        for (line, _) in (1..).zip(text.lines()).filter(|(_, it)| is_placeholder(it)) {
            let _ = writeln!(problems, "{}:{line}", path.display());
        }
    }
    assert!(problems.is_empty(), "\n{problems}");
}

/// A page that the summary of the book does not list would not be in the book.
#[test]
fn summary_lists_every_page_once() {
    let summary = Path::new("docs/SUMMARY.md");
    let pages = pages();
    let mut listed = BTreeSet::new();
    for link in &pages[summary].links {
        let path = resolve(summary, &link.target).unwrap();
        assert!(listed.insert(path), "{} is listed twice", link.target);
    }
    let all: BTreeSet<_> = pages.into_keys().filter(|path| path != summary).collect();
    assert_eq!(listed, all);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(page: &str) -> Option<String> {
        let here = PathBuf::from("docs/a.md");
        let pages = BTreeMap::from([
            (here.clone(), Page::parse(page)),
            ("docs/b.md".into(), Page::parse("# One *two*\n")),
        ]);
        let read = |path: &Path| match path.to_str() {
            Some("docs/a.md" | "docs/b.md") => Ok(Some(String::new())),
            Some("driver/x.rs") => Ok(Some("fn a() {} // b".into())),
            Some("driver") => Ok(None),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        let link = &pages[&here].links[0];
        problem(&pages, &here, link, read)
    }

    #[test]
    fn placeholders_are_told_from_text() {
        assert!(["@DMA@", "@X@"].into_iter().all(is_placeholder));
        let text = [
            "", "@", "@@", "@dma@", "@DMA", "x @DMA@", "@DMA@ x", "@A B@",
        ];
        assert!(!text.into_iter().any(is_placeholder));
    }

    #[test]
    fn true_links_are_no_problem() {
        for page in [
            "[x](https://example.org/#y)",
            "[x](b.md)",
            "[x](./b.md#one-two)",
            "# Y\n[x](#y)",
            "[x](../driver)",
            "[`a`](../driver/x.rs)",
            "[`x.rs`](../driver/x.rs)",
            "![x](b.md)",
        ] {
            assert_eq!(check(page), None, "{page}");
        }
    }

    #[test]
    fn each_kind_of_wrong_link_is_found() {
        for (page, reason) in [
            ("[x](c.md)", "docs/c.md"),
            ("![x](c.svg)", "docs/c.svg"),
            ("[x](/docs/b.md)", "out of the checkout"),
            ("[x](../../b.md)", "out of the checkout"),
            ("[x](b.md#two)", "no heading #two"),
            ("[x](#y)", "no heading #y"),
            ("[x](../driver/x.rs#a)", "is no document"),
            ("[`b`](../driver/x.rs)", "does not contain b"),
            ("[`a`](../driver)", "not in a folder"),
        ] {
            let problem = check(page).unwrap_or_default();
            assert!(problem.contains(reason), "{page}: {problem:?}");
        }
    }
}
