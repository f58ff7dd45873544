// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tests. One suite runs in one virtual machine.

mod asynchronous;
mod concurrency;
mod data;
pub mod durability;
mod ends;
mod faults;
mod lifecycle;
mod mmap;
mod probe;
mod selectors;
mod stall;
mod tool;

use crate::case::Suite;

/// All suites.
pub fn all() -> Vec<Suite> {
    vec![
        probe::suite(),
        mmap::suite(),
        ends::suite(),
        data::suite(),
        asynchronous::suite(),
        concurrency::suite(),
        stall::suite(),
        lifecycle::suite(),
        durability::suite(),
        tool::suite(),
    ]
}

/// Suites that need the debug kernel.
pub fn debug() -> Vec<Suite> {
    vec![faults::suite()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_test_has_a_name_of_its_own_with_a_feature_id() {
        let mut names = HashSet::new();
        for suite in all().into_iter().chain(debug()) {
            for case in suite.cases {
                let (id, rest) = case.name.split_once('_').unwrap();
                let (section, number) = id.split_at(1);
                assert!("abcdef".contains(section), "{}", case.name);
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
