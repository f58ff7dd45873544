// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The suites. Each suite runs in a virtual machine of its own.
//!
//! A new suite is a function that returns a [`Suite`] with its tests and [`Needs`], and a
//! line in `all`.

mod asynchronous;
mod block;
mod bounce;
mod commands;
mod concurrency;
mod cpu_hotplug;
mod data;
mod debuggers;
mod durability;
mod ends;
mod faults;
mod files;
mod function;
mod hostile;
mod injected;
mod iommu;
mod kunit;
mod large;
mod lies;
mod lifecycle;
mod mmap;
mod nbd;
mod nodes;
mod pages;
mod probe;
mod provided;
mod recovery;
mod resize;
mod selectors;
mod stall;
mod survival;
mod suspend;
mod tool;
mod vectors;

use crate::case::{Case, OnDebugKernel, Suite};
use crate::needs::{Kernels, Needs, Transports};

/// All suites, in the order in which they run.
fn all() -> Vec<Suite> {
    let mut suites = vec![
        probe::suite(),
        mmap::suite(),
        ends::suite(),
        files::suite(),
        data::suite(),
        asynchronous::suite(),
        commands::suite(),
        block::suite(),
        nbd::suite(),
        concurrency::suite(),
        cpu_hotplug::suite(),
        pages::suite(),
        bounce::suite(),
        stall::suite(),
        large::suite(),
        resize::suite(),
        lies::suite(),
        injected::suite(),
        function::suite(),
        hostile::suite(),
        lifecycle::suite(),
        suspend::suite(),
        durability::suite(),
        tool::suite(),
        faults::suite(),
    ];
    suites.push(lifecycle::long_suite());
    suites.extend(survival::suites());
    suites.extend(vectors::suites());
    suites.extend(iommu::suites());
    suites
}

/// The suites for Debian's kernel.
pub fn stock() -> Vec<Suite> {
    let mut suites = all();
    suites.retain(|suite| suite.needs.kernels != Kernels::DebugOnly);
    suites
}

/// The suites for the debug kernel. The first one has the tests of all those that share a
/// machine there.
pub fn debug() -> Vec<Suite> {
    let (shared, own): (Vec<_>, Vec<_>) = all()
        .into_iter()
        .partition(|suite| suite.needs.kernels == Kernels::Shared);
    let driver = Suite {
        name: "driver",
        about: "what the suites for the stock kernel test on the same device",
        needs: Needs::default(),
        cases: shared
            .into_iter()
            .flat_map(cases_with_transports)
            .chain(kunit::cases())
            .collect(),
    };
    let mut suites = vec![driver];
    suites.extend(own);
    for suite in &mut suites {
        suite
            .cases
            .retain(|case| case.on_debug_kernel != OnDebugKernel::Never);
    }
    suites.retain(|suite| !suite.cases.is_empty());
    suites
}

/// The tests of a suite, each with the transports of the suite if these are fewer.
fn cases_with_transports(suite: Suite) -> impl Iterator<Item = Case> {
    let transports = suite.needs.transports();
    suite.cases.into_iter().map(move |case| Case {
        transports: match transports {
            Transports::Only(..) => transports,
            Transports::Any | Transports::Each => case.transports,
        },
        ..case
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::{DeviceKind, End, HostStorage};
    use ringbar_agent_protocol::machine::{Iommu, Transport};
    use std::collections::HashSet;

    #[test]
    fn needs_fit_the_tests() {
        for suite in all() {
            let has = |test: &str| suite.cases.iter().any(|case| case.name == test);
            let needs = &suite.needs;
            let transports = needs.transports();
            let vhost_user = transports.include(Transport::VhostUser);
            assert!(
                needs.iommu == Iommu::None || !vhost_user,
                "{}: the driver refuses a vhost-user device behind an IOMMU",
                suite.name
            );
            for case in &suite.cases {
                let both = |transport: &Transport| {
                    transports.include(*transport) && case.transports.include(*transport)
                };
                assert!(
                    Transport::ALL.iter().any(both),
                    "{}::{} runs over no transport",
                    suite.name,
                    case.name
                );
            }
            match &needs.end {
                End::PowerOff(counts) => {
                    assert!(counts.iter().all(|count| has(count.test)), "{}", suite.name);
                }
                End::StorageFailed(test) => assert!(has(test), "{}", suite.name),
                End::Killed(ranges) => {
                    assert!(ranges.iter().all(|range| has(range.test)), "{}", suite.name);
                    let file = matches!(
                        &needs.device,
                        DeviceKind::Daemon(daemon) if daemon.storage == HostStorage::File
                    );
                    assert!(file, "{} compares a file that it has not", suite.name);
                }
            }
        }
    }

    #[test]
    fn every_test_has_a_name_of_its_own_with_an_id() {
        let mut names = HashSet::new();
        for suite in all() {
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
