// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The paths in a file, and what they name.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::tokens::{Token, end_of_brackets, tokens, without_tests};

/// Path of a module from the crate root, which has the empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Module(pub Vec<String>);

impl Module {
    /// The module of a file, named from the driver's folder on.
    pub fn of_file(path: &Path) -> Self {
        let mut names: Vec<String> = path
            .with_extension("")
            .iter()
            .map(|name| name.to_str().unwrap().to_owned())
            .collect();
        if names.last().is_some_and(|name| name == "mod") || names == ["ringbar_main"] {
            names.pop();
        }
        Self(names)
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_abstraction(&self) -> bool {
        self.0.first().is_some_and(|name| name == "abstractions")
    }

    fn child(&self, name: &str) -> Self {
        let mut names = self.0.clone();
        names.push(name.to_owned());
        Self(names)
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            f.write_str("crate")
        } else {
            f.write_str(&self.0.join("::"))
        }
    }
}

/// Reads a path, or a tree of them, from `at` on. Adds them to `paths`, each behind `prefix`,
/// and returns where they end.
fn read_tree<'s>(
    tokens: &[Token<'s>],
    mut at: usize,
    prefix: &[&'s str],
    paths: &mut Vec<Vec<&'s str>>,
) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at) {
            Some(token) if token.text == "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = read_tree(tokens, at, &path, paths);
                    while tokens
                        .get(at)
                        .is_some_and(|token| !matches!(token.text, "," | "}"))
                    {
                        // What is behind `as`.
                        at += 1;
                    }
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                }
                return at + 1;
            }
            Some(token) if token.is_word() => {
                // Within a tree, `self` is what stands before it.
                if path.is_empty() || token.text != "self" {
                    path.push(token.text);
                }
                at += 1;
            }
            // `*`, or the arguments of something generic.
            _ => {
                paths.push(path);
                return at + 1;
            }
        }
        if tokens.get(at).is_some_and(|token| token.text == "::") {
            at += 1;
        } else {
            paths.push(path);
            return at;
        }
    }
}

/// A path in a module, from the crate root on.
#[derive(Debug)]
pub struct Reference {
    pub path: Vec<String>,
    pub line: usize,
}

/// The path from the crate root on, as seen from `module`, `inline` modules within its file
/// deep. `None` for another crate, and for what is in the file itself.
fn absolute(
    path: &[&str],
    module: &Module,
    inline: usize,
    modules: &BTreeSet<Module>,
) -> Option<Vec<String>> {
    let mut base = module.0.clone();
    let mut inline = inline;
    let mut rest = path;
    match *path.first()? {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while let Some(("super", behind)) = rest.split_first().map(|(name, r)| (*name, r)) {
                if inline > 0 {
                    inline -= 1;
                } else {
                    base.pop();
                }
                rest = behind;
            }
        }
        name if inline == 0 && modules.contains(&module.child(name)) => {}
        _ => return None,
    }
    base.extend(rest.iter().map(|&name| name.to_owned()));
    Some(base)
}

/// All that `module` names of its crate.
pub fn references(module: &Module, source: &str, modules: &BTreeSet<Module>) -> Vec<Reference> {
    let tokens = without_tests(&tokens(source));
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let mut references = Vec::new();
    // Where the modules end that are within this file.
    let mut inline = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        inline.retain(|&end| at < end);
        let before = if at > 0 { text(at - 1) } else { "" };
        let mut paths = Vec::new();
        let line = tokens[at].line;
        if text(at) == "mod" && text(at + 2) == "{" {
            inline.push(end_of_brackets(&tokens, at + 2));
            at += 3;
        } else if text(at) == "use" && text(at + 1) != "<" {
            at = read_tree(&tokens, at + 1, &[], &mut paths);
        } else if tokens[at].is_word()
            && text(at + 1) == "::"
            // In `pub(in ...)` nothing is used; `$crate` is for whoever calls the macro.
            && !matches!(before, "::" | "in" | "$")
        {
            at = read_tree(&tokens, at, &[], &mut paths);
        } else {
            at += 1;
        }
        references.extend(paths.iter().filter_map(|path| {
            let path = absolute(path, module, inline.len(), modules)?;
            Some(Reference { path, line })
        }));
    }
    references
}
