// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The modules of the driver depend on each other in one direction only, and what is unsafe
//! stays in `driver/abstractions`, as docs/architecture.md says.
//!
//! A module is a file. It depends on those that it names by a path: in a `use`, or anywhere
//! else. Modules of KUnit tests may name what they like, and `driver/misuse` is no part of
//! the driver.

mod paths;
mod tokens;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use paths::{Module, references};
use tokens::tokens;

/// What the crate root has for everybody: `module!` makes most of it, and `layout` and `uapi`
/// are files of other crates. None of it depends on the driver, so a path to the root is not
/// part of a circle.
const ROOT_ITEMS: [&str; 5] = ["LocalModule", "NAME", "layout", "module_parameters", "uapi"];

/// Folders that are crates of their own.
const CRATES: [&str; 2] = ["tool", "uapi"];

/// What the abstractions use of the crate that they are part of: every crate with a `module!`
/// has it.
const ABSTRACTIONS_USE: [&str; 1] = ["LocalModule"];

/// Words that may only be in the abstractions.
const ABSTRACTIONS_ONLY: [&str; 2] = ["unsafe", "bindings"];

/// The files of the driver, or what a test says they are.
struct Driver {
    files: BTreeMap<Module, (PathBuf, String)>,
    modules: BTreeSet<Module>,
}

impl Driver {
    fn new(files: impl IntoIterator<Item = (PathBuf, String)>) -> Self {
        let files: BTreeMap<_, _> = files
            .into_iter()
            .filter(|(path, _)| !path.starts_with("misuse"))
            .map(|(path, source)| (Module::of_file(&path), (path, source)))
            .collect();
        let modules = files.keys().cloned().collect();
        Self { files, modules }
    }

    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../driver");
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    if !CRATES.iter().any(|name| root.join(name) == path) {
                        folders.push(path);
                    }
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let source = fs::read_to_string(&path).unwrap();
                    files.push((path.strip_prefix(&root).unwrap().to_owned(), source));
                }
            }
        }
        let driver = Self::new(files);
        assert!(driver.modules.len() > 50, "that is not the driver");
        driver
    }

    /// The module that has what `path` names: the longest part of it that is one.
    fn module_of(&self, path: &[String]) -> Module {
        (0..=path.len())
            .rev()
            .map(|length| Module(path[..length].to_vec()))
            .find(|module| self.modules.contains(module))
            .unwrap_or_default()
    }

    /// Each module with those that it uses. The root is used by none, see [`ROOT_ITEMS`].
    fn graph(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let used_by = |module: &Module, source: &str| {
            references(module, source, &self.modules)
                .iter()
                .map(|reference| self.module_of(&reference.path))
                .filter(|used| used != module && !used.is_root())
                .collect()
        };
        self.files
            .iter()
            .map(|(module, (_, source))| (module, used_by(module, source)))
            .collect()
    }

    /// The circles: for each module that is in any, a shortest one, written out.
    fn circles(&self) -> BTreeSet<String> {
        let graph = self.graph();
        let mut circles = BTreeSet::new();
        for &start in graph.keys() {
            // Breadth first: each module that is reached, with the one before.
            let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
            let mut queue = VecDeque::from([start]);
            while let Some(module) = queue.pop_front() {
                for used in &graph[module] {
                    before.entry(used).or_insert_with(|| {
                        queue.push_back(used);
                        module
                    });
                }
            }
            let Some(mut last) = before.get(start).copied() else {
                continue;
            };
            let mut circle = vec![start];
            while last != start {
                circle.push(last);
                last = before[last];
            }
            circle.reverse();
            // The same circle is found from each of its modules.
            let smallest = (0..circle.len()).min_by_key(|&n| circle[n]).unwrap();
            circle.rotate_left(smallest);
            circle.push(circle[0]);
            let names: Vec<_> = circle.iter().map(ToString::to_string).collect();
            circles.insert(names.join(" -> "));
        }
        circles
    }

    /// Where a module uses something of the crate root, or an abstraction something that is
    /// none, although it must not.
    fn forbidden_uses(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (module, (path, source)) in &self.files {
            for reference in references(module, source, &self.modules) {
                let Some(first) = reference.path.first() else {
                    // `use crate::*` hides what is used.
                    found.push(format!("{}:{}: *", path.display(), reference.line));
                    continue;
                };
                let is_of_root = self.module_of(&reference.path).is_root();
                let is_allowed = if module.is_abstraction() {
                    first == "abstractions" || ABSTRACTIONS_USE.contains(&first.as_str())
                } else {
                    !is_of_root || ROOT_ITEMS.contains(&first.as_str())
                };
                if !is_allowed {
                    let name = reference.path.join("::");
                    found.push(format!("{}:{}: {name}", path.display(), reference.line));
                }
            }
        }
        found
    }

    /// Where a module has a word that is the abstractions' only.
    fn forbidden_words(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (module, (path, source)) in &self.files {
            if module.is_abstraction() {
                continue;
            }
            for token in tokens(source) {
                if ABSTRACTIONS_ONLY.contains(&token.text) {
                    found.push(format!("{}:{}: {}", path.display(), token.line, token.text));
                }
            }
        }
        found
    }
}

#[test]
fn modules_depend_on_each_other_in_no_circle() {
    let circles = Driver::read().circles();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn abstractions_know_nothing_of_the_driver() {
    let uses = Driver::read().forbidden_uses();
    assert!(uses.is_empty(), "{uses:#?}");
}

#[test]
fn only_abstractions_are_unsafe() {
    let words = Driver::read().forbidden_words();
    assert!(words.is_empty(), "{words:#?}");
}

fn driver(files: &[(&str, &str)]) -> Driver {
    Driver::new(
        files
            .iter()
            .map(|&(path, source)| (path.into(), source.to_owned())),
    )
}

/// What the module of the file `path` uses, in words.
fn used(path: &str, source: &str) -> Vec<String> {
    let others = ["a.rs", "b/mod.rs", "b/c.rs", "b/d/mod.rs", "b/d/e.rs"];
    let mut files: BTreeMap<_, _> = others.iter().map(|&path| (path, "")).collect();
    files.insert(path, source);
    let files: Vec<_> = files.into_iter().collect();
    let module = Module::of_file(Path::new(path));
    let driver = driver(&files);
    driver.graph()[&module]
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn trees_of_paths_are_read() {
    let source = "use crate::{a::{self, X as _}, b::{c::*, d::{e::Y, Z}, // none\n}, NAME};";
    assert_eq!(used("f.rs", source), ["a", "b::c", "b::d", "b::d::e"]);
}

#[test]
fn paths_begin_at_the_module_that_has_them() {
    assert_eq!(used("b/c.rs", "use super::d::e::X;"), ["b::d::e"]);
    assert_eq!(used("b/c.rs", "use super::X;"), ["b"]);
    assert_eq!(used("b/d/e.rs", "use super::super::c::X;"), ["b::c"]);
    assert_eq!(
        used("b/mod.rs", "use self::{c::X, d::e};"),
        ["b::c", "b::d::e"]
    );
    assert_eq!(used("b/mod.rs", "pub(crate) use {c::X};"), ["b::c"]);
    assert_eq!(
        used("b/mod.rs", "mod sealed { use super::c::X; }"),
        ["b::c"]
    );
    assert_eq!(used("b/mod.rs", "mod sealed {} use super::a::X;"), ["a"]);
    // Another crate's, although it has the same name.
    assert_eq!(used("b/mod.rs", "use kernel::{c::X, d};"), [""; 0]);
}

#[test]
fn paths_are_found_anywhere() {
    assert_eq!(used("f.rs", "fn f() { crate::a::g::<u8>(b::h) }"), ["a"]);
    assert_eq!(
        used("b/mod.rs", "fn f() -> c::X { d::Y.c() }"),
        ["b::c", "b::d"]
    );
    assert_eq!(
        used("b/c.rs", "fn f(x: &'a super::d::Y, y: ()) {}"),
        ["b::d"]
    );
}

#[test]
fn no_paths_are_found_in_text_and_tests() {
    for source in [
        "/// [`x`](crate::a)\nfn f() {}",
        "/* /* */ use crate::a; */",
        r##"const X: &CStr = cr#"" use crate::a; "#;"##,
        r#"const X: &str = "\" use crate::a; \\";"#,
        r"const X: [char; 2] = ['\'', '\u{22}']; /* ' crate::a::X */",
        "pub(in crate::a) fn f() {}",
        "macro_rules! m { () => { $crate::a::X } }",
        "#[kernel::macros::kunit_tests(x)] mod tests { use crate::a; mod m { fn f() {} } }",
    ] {
        assert_eq!(used("f.rs", source), [""; 0], "{source}");
        // And what follows is read.
        let followed = format!("{source}\nuse crate::b::c;");
        assert_eq!(used("f.rs", &followed), ["b::c"], "{source}");
    }
}

#[test]
fn circles_are_spelled_out() {
    let driver = driver(&[
        ("ringbar_main.rs", "use a::X;"),
        ("a.rs", "use crate::{b::c::X, d::Y};"),
        ("b/mod.rs", "pub(crate) use c::X;"),
        ("b/c.rs", "use crate::d::Z;"),
        ("d.rs", "use crate::{a::T, NAME};"),
        ("misuse/mod.rs", "use crate::a::X;"),
    ]);
    let circles: Vec<_> = driver.circles().into_iter().collect();
    assert_eq!(circles, ["a -> b::c -> d -> a", "a -> d -> a"]);
}

#[test]
fn forbidden_uses_are_found() {
    let driver = driver(&[
        (
            "abstractions/x.rs",
            "use crate::{abstractions::y::Y, LocalModule};",
        ),
        ("abstractions/y.rs", "use crate::{a::A,\n NAME};"),
        (
            "a.rs",
            "use crate::{abstractions::x::X, layout::L, NAME, Own};",
        ),
    ]);
    assert_eq!(
        driver.forbidden_uses(),
        [
            "a.rs:1: Own",
            "abstractions/y.rs:1: a::A",
            "abstractions/y.rs:1: NAME",
        ],
    );
}

#[test]
fn forbidden_words_are_found() {
    let driver = driver(&[
        ("abstractions/x.rs", "unsafe { kernel::bindings::f() }"),
        ("a.rs", "// unsafe\n#![deny(unsafe_code)]\nunsafe fn f() {}"),
        ("b.rs", "use kernel::{\n    bindings,\n};"),
    ]);
    assert_eq!(
        driver.forbidden_words(),
        ["a.rs:3: unsafe", "b.rs:2: bindings"]
    );
}
