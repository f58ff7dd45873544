// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The suites. Each suite runs in a virtual machine of its own.

mod asynchronous;
pub mod block;
pub mod bounce;
mod commands;
mod concurrency;
mod data;
mod debuggers;
pub mod durability;
mod ends;
mod faults;
pub mod files;
mod function;
mod kunit;
pub mod large;
pub mod lies;
mod lifecycle;
mod mmap;
mod nodes;
mod pages;
mod probe;
mod provided;
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
        block::suite(),
        concurrency::suite(),
        pages::suite(),
        bounce::suite(),
        stall::suite(),
        large::suite(),
        resize::suite(),
        lies::suite(),
        function::suite(),
        lifecycle::suite(),
        suspend::suite(),
        durability::suite(),
        tool::suite(),
    ]
}

/// Suites for the debug kernel. The debug kernel boots slowly, so all tests that do not
/// need a device of their own share one machine.
pub fn debug() -> Vec<Suite> {
    let (own, shared): (Vec<_>, Vec<_>) = all().into_iter().partition(|suite| {
        OWN_DEVICE.contains(&suite.name) || SUITES_OF_TEST_ALL.contains(&suite.name)
    });
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

/// Tests for which the debug kernel is too slow, for example because one poll takes
/// longer than the driver's limit, or which need a feature that it lacks.
const NOT_IN_DEBUG: [&str; 5] = [
    "c4_small_requests_are_polled_for",
    "c4_larger_requests_are_polled_for",
    // A fork of that much memory takes longer than the test waits for.
    "dr2_unbind_ends_while_processes_with_maps_fork",
    // No CONFIG_IA32_EMULATION.
    "b14_block_ioctls_of_32_bit_programs",
    // No CONFIG_CROSS_MEMORY_ATTACH.
    "a12_process_vm_readv_of_maps",
];

/// Suites whose device or machine is not the ordinary one.
const OWN_DEVICE: [&str; 2] = ["durability", "large"];

/// More of those, which `make test` runs on the stock kernel only: on the debug kernel the
/// start of a machine alone takes a minute.
const SUITES_OF_TEST_ALL: [&str; 5] = ["block", "bounce", "function", "lies", "suspend"];

/// Tests on the debug kernel that take minutes: this one fails each allocation of a probe, some
/// 400, one after the other.
const TESTS_OF_TEST_ALL: [&str; 1] = ["d2_faults_in_probe"];

/// Whether `make test` leaves a test of the debug kernel to `make test-all`.
pub fn is_left_to_test_all(suite: &str, test: &str) -> bool {
    SUITES_OF_TEST_ALL.contains(&suite) || TESTS_OF_TEST_ALL.contains(&test)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_test_has_a_name_of_its_own_with_an_id() {
        let mut names = HashSet::new();
        for suite in all().into_iter().chain([faults::suite()]) {
            for case in suite.cases {
                let (id, rest) = case.name.split_once('_').unwrap();
                // A feature of the list in docs/features.md, or a fault that was found once.
                let section = id.trim_end_matches(|c: char| c.is_ascii_digit());
                let number = &id[section.len()..];
                let known = ["a", "b", "c", "d", "e", "f", "dr", "ho"];
                assert!(known.contains(&section), "{}", case.name);
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
