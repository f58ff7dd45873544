// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks that the documents name existing tests, and that the table of features has a row for
//! every feature.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ringbar_guest_tests::case::Suite;
use ringbar_guest_tests::suites;
use ringbar_runner::binding;
use ringbar_runner::kit;
use ringbar_runner::reboot;
use ringbar_runner::refusal::BEHIND_IOMMU;
use ringbar_runner::several;
use ringbar_runner::suite::checks::Check;
use ringbar_runner::unplug;
use ringbar_vm::setup::Kernel;

const TABLE: &str = include_str!("../../../docs/features.md");

fn names(prefix: &str, kernel: Kernel, suites: Vec<Suite>) -> Vec<String> {
    let mut names = Vec::new();
    for suite in suites {
        let cases = suite.cases.into_iter().map(|case| case.name);
        let checks = Check::of(&suite.needs, kernel);
        names.extend(
            cases
                .chain(checks.into_iter().map(|check| check.name().to_owned()))
                .map(|name| format!("{prefix}{}::{name}", suite.name)),
        );
    }
    names
}

/// All tests that run in virtual machines.
fn known() -> Vec<String> {
    let mut known = names("", Kernel::Stock, suites::stock());
    known.extend(names("debug::", Kernel::Debug, suites::debug()));
    known.extend(BEHIND_IOMMU.map(|(name, _)| name.into()));
    known.extend(binding::names());
    known.extend(kit::TESTS.map(|test| test.name.into()));
    known.extend(several::names());
    known.extend(reboot::MACHINES.iter().flat_map(reboot::names));
    known.extend(unplug::MACHINES.iter().flat_map(unplug::names));
    known
}

/// Whether there is a test of this name. A trailing underscore makes it a prefix.
fn exists(known: &[String], text: &str) -> bool {
    let mut known = known.iter();
    known.any(|name| name == text || text.ends_with('_') && name.starts_with(text))
}

/// Whether a text is the name of a test, or begins one: a suite, and an id such as `a1` or `dr12`
/// before an underscore.
fn is_test(text: &str) -> bool {
    let Some((suite, name)) = text.rsplit_once("::") else {
        return false;
    };
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-:".contains(c);
    let Some((id, _)) = name.split_once('_') else {
        return false;
    };
    let section = id.trim_end_matches(|c: char| c.is_ascii_digit());
    suite.chars().all(lower)
        && name.chars().all(lower)
        && section.len() < id.len()
        && ["a", "b", "c", "d", "e", "f", "dr", "ho"].contains(&section)
}

#[test]
fn names_of_tests_are_told_from_other_code() {
    for test in [
        "mmap::a3_x",
        "debug::driver::dr12_kunit_y",
        "vfio-user::data::b1_",
    ] {
        assert!(is_test(test), "{test}");
    }
    for other in [
        "mmap",
        "Slot::new",
        "mmap::",
        "a::b",
        "a::b_c",
        "io::Error",
        "x::A1_b",
    ] {
        assert!(!is_test(other), "{other}");
    }
}

/// The pages of docs/, by their paths.
fn pages(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages.extend(self::pages(&path));
        } else if path.extension().is_some_and(|end| end == "md") {
            let text = fs::read_to_string(&path).unwrap();
            pages.push((path, text));
        }
    }
    pages
}

#[test]
fn documents_name_tests_that_exist() {
    let known = known();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut missing = Vec::new();
    for (path, text) in pages(&docs) {
        for code in text.split('`').filter(|code| is_test(code)) {
            // Over vfio-user the tests of a suite have the same names.
            let name = code.replace("vfio-user::", "");
            if !exists(&known, &name) {
                missing.push(format!("{}: {code}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn table_names_tests_that_exist() {
    let known = known();
    let mut named = 0;
    // Text between backticks that looks like the name of a test.
    for text in TABLE.split('`').skip(1).step_by(2) {
        if !text.contains("::") || text.ends_with("::") {
            continue;
        }
        assert!(exists(&known, text), "there is no test {text}");
        named += 1;
    }
    assert!(named > 80, "only {named} tests are named");
}

/// The rows of the table of the device kit: the id and the other cells.
fn kit() -> Vec<(&'static str, Vec<&'static str>)> {
    let (_, section) = TABLE
        .split_once("\n## The device kit")
        .expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let cells = rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim));
    cells
        .filter_map(|mut cells| Some((cells.next()?, cells.collect())))
        .skip(1)
        .collect()
}

#[test]
fn table_of_the_device_kit_has_tests_and_a_result_for_each_row() {
    let rows = kit();
    let ids = (1..=7)
        .map(|number| format!("D{number}"))
        .chain((3..=9).map(|number| format!("E{number}")))
        .chain(["G2".to_owned()]);
    for id in ids {
        let cells = rows.iter().find(|(row, _)| *row == id);
        let (_, cells) = cells.unwrap_or_else(|| panic!("no row for {id}"));
        let [about, tests, result] = cells[..] else {
            panic!("{id} has other columns: {cells:?}");
        };
        assert!(!about.is_empty() && !result.is_empty(), "{id}");
        assert!(tests.contains('`'), "{id} names no test: {tests}");
        // A result is a number of something that was run.
        assert!(
            result.contains(|c: char| c.is_ascii_digit()),
            "{id}: {result}"
        );
    }
}

#[test]
fn table_has_a_row_for_each_feature() {
    let rows: BTreeSet<&str> = TABLE
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let sections = [("A", 12), ("B", 14), ("C", 7)];
    for (section, count) in sections {
        for number in 1..=count {
            let id = format!("{section}{number}");
            assert!(rows.contains(id.as_str()), "no row for {id}");
        }
    }
}
