// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks that the table of features names existing tests, and has a row for every
//! feature.

use std::collections::BTreeSet;

use ringbar_guest_tests::case::Suite;
use ringbar_guest_tests::suites;
use ringbar_runner::binding;
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

#[test]
fn table_names_tests_that_exist() {
    let mut known = names("", Kernel::Stock, suites::stock());
    known.extend(names("debug::", Kernel::Debug, suites::debug()));
    known.extend(BEHIND_IOMMU.map(|(name, _)| name.into()));
    known.extend(binding::names());
    known.extend(several::names());
    known.extend(unplug::MACHINES.iter().flat_map(unplug::names));

    let mut named = 0;
    // Text between backticks that looks like the name of a test. A trailing underscore
    // makes it a prefix.
    for text in TABLE.split('`').skip(1).step_by(2) {
        if !text.contains("::") || text.ends_with("::") {
            continue;
        }
        let found = known
            .iter()
            .any(|name| name == text || text.ends_with('_') && name.starts_with(text));
        assert!(found, "there is no test {text}");
        named += 1;
    }
    assert!(named > 80, "only {named} tests are named");
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
