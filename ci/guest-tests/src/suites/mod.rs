// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tests. One suite runs in one virtual machine.

mod asynchronous;
mod commands;
mod concurrency;
mod data;
pub mod durability;
mod ends;
mod faults;
pub mod files;
mod kunit;
pub mod large;
mod lifecycle;
mod mmap;
mod probe;
mod recovery;
mod resize;
mod selectors;
mod stall;
mod suspend;
mod tool;

use crate::case::Suite;

/// All suites.
pub fn all() -> Vec<Suite> {
    vec![
        probe::suite(),
        mmap::suite(),
        ends::suite(),
        files::suite(),
        data::suite(),
        asynchronous::suite(),
        commands::suite(),
        concurrency::suite(),
        stall::suite(),
        large::suite(),
        resize::suite(),
        lifecycle::suite(),
        suspend::suite(),
        durability::suite(),
        tool::suite(),
    ]
}

/// Suites for the debug kernel. It takes long to boot, so all tests that do not
/// need a device of their own share one machine.
pub fn debug() -> Vec<Suite> {
    let (own, shared): (Vec<_>, Vec<_>) = all()
        .into_iter()
        .partition(|suite| OWN_DEVICE.contains(&suite.name));
    let mut suites = vec![Suite {
        name: "driver",
        about: "what the suites for the stock kernel test on the same device",
        cases: shared
            .into_iter()
            .flat_map(|suite| suite.cases)
            .filter(|case| !NOT_IN_DEBUG.contains(&case.name.as_str()))
            .chain(kunit::cases())
            .collect(),
    }];
    suites.extend(own);
    suites.push(faults::suite());
    suites
}

/// Tests of what the debug kernel is too slow for: it takes longer to look once than
/// the driver looks for in all.
const NOT_IN_DEBUG: [&str; 2] = [
    "c4_small_requests_are_polled_for",
    "c4_larger_requests_are_polled_for",
];

/// Suites whose device or machine is not the ordinary one.
const OWN_DEVICE: [&str; 3] = ["durability", "large", "suspend"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_test_has_a_name_of_its_own_with_a_feature_id() {
        let mut names = HashSet::new();
        for suite in all().into_iter().chain([faults::suite()]) {
            for case in suite.cases {
                let (id, rest) = case.name.split_once('_').unwrap();
                let number = id.trim_start_matches(|c: char| c.is_ascii_lowercase());
                let section = &id[..id.len() - number.len()];
                // Features, and faults that were found in the driver or on the host.
                let sections = ["a", "b", "c", "d", "e", "f", "dr", "ho"];
                assert!(sections.contains(&section), "{}", case.name);
                assert!(number.parse::<u8>().is_ok(), "{}", case.name);
                assert!(
                    rest.bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                    "{}",
                    case.name
                );
                assert!(names.insert(case.name.clone()), "{} twice", case.name);
            }
        }
    }
}
