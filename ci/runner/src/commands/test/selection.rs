// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which tests run, and what they are called.

use std::path::Path;

use ringbar_agent_protocol::machine::Transport;
use ringbar_guest_tests::case::{Case, OnDebugKernel};
use ringbar_guest_tests::needs::{Kernels, Needs, Transports};
use ringbar_guest_tests::suites;
use ringbar_runner::kit;
use ringbar_runner::suite::plan::Plan;
use ringbar_runner::unplug::{self, Machine};
use ringbar_vm::setup::Kernel;

/// Whether a test is selected.
pub(super) fn wanted(filters: &[String], name: &str) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

/// Which tests run.
pub(super) struct Selection<'a> {
    /// Whether suites run that are not for every day.
    pub(super) all: bool,
    /// The only transport.
    pub(super) transport: Option<Transport>,
    /// Parts of the names of tests.
    pub(super) filters: &'a [String],
}

impl Selection<'_> {
    /// Whether tests run over a transport.
    pub(super) fn includes(&self, transport: Transport) -> bool {
        self.transport.is_none_or(|only| only == transport)
    }

    /// Whether only the tests for every day run.
    fn is_daily(&self) -> bool {
        !self.all && self.filters.is_empty()
    }

    /// Whether a test of a card runs.
    pub(super) fn runs_kit(&self, test: &kit::Test) -> bool {
        self.includes(test.transport) && (test.daily || !self.is_daily())
    }

    /// Whether a machine in which the device is unplugged is needed.
    pub(super) fn runs_machine(&self, machine: &Machine) -> bool {
        self.includes(Transport::VfioUser)
            && (machine.daily || !self.is_daily())
            && unplug::names(machine).any(|name| wanted(self.filters, &name))
    }

    /// Whether a suite with these needs runs.
    fn runs(&self, needs: &Needs, kernel: Kernel, transport: Transport) -> bool {
        let transports = needs.transports();
        if !self.includes(transport) || !transports.include(transport) {
            return false;
        }
        if !self.is_daily() {
            return true;
        }
        match needs.kernels {
            Kernels::TestAllOnly => return false,
            Kernels::OwnInTestAll if kernel == Kernel::Debug => return false,
            _ => {}
        }
        // Over the default transport, and over the only one, all that can run does.
        transport == Transport::default()
            || self.transport.is_some()
            || match transports {
                Transports::Any => false,
                Transports::Each => kernel == Kernel::Stock,
                Transports::Only(..) => true,
            }
    }

    /// Whether a test of such a suite runs.
    fn runs_case(&self, case: &Case, kernel: Kernel, transport: Transport) -> bool {
        if !case.transports.include(transport) {
            return false;
        }
        if !self.is_daily() {
            return true;
        }
        // Over the other transport only what depends on it, as for suites.
        let other = transport != Transport::default() && self.transport.is_none();
        let is_elsewhere = other && case.transports == Transports::Any;
        let is_later = kernel == Kernel::Debug && case.on_debug_kernel == OnDebugKernel::InTestAll;
        !(is_elsewhere || is_later)
    }
}

/// Name of a suite as part of the names of its tests.
pub(super) fn full_name(
    suite: &str,
    needs: &Needs,
    kernel: Kernel,
    transport: Transport,
) -> String {
    let kernel = match kernel {
        Kernel::Stock => "",
        Kernel::Debug => "debug::",
    };
    let transport = match (needs.transports(), transport) {
        (Transports::Only(..), _) | (_, Transport::VhostUser) => "",
        (_, Transport::VfioUser) => "vfio-user::",
    };
    format!("{kernel}{transport}{suite}")
}

/// The suites with the selected tests.
pub(super) fn plans(checkout: &Path, kernel: Kernel, selection: &Selection<'_>) -> Vec<Plan> {
    Transport::ALL
        .into_iter()
        .flat_map(|transport| {
            let suites = match kernel {
                Kernel::Stock => suites::stock(),
                Kernel::Debug => suites::debug(),
            };
            suites.into_iter().map(move |suite| (transport, suite))
        })
        .filter(|(transport, suite)| selection.runs(&suite.needs, kernel, *transport))
        .map(|(transport, mut suite)| {
            let name = full_name(suite.name, &suite.needs, kernel, transport);
            suite.cases.retain(|case| {
                wanted(selection.filters, &format!("{name}::{}", case.name))
                    && selection.runs_case(case, kernel, transport)
            });
            let provoked = suite
                .cases
                .iter()
                .flat_map(|case| case.provoked.iter().map(|what| (case.name.clone(), *what)))
                .collect();
            Plan {
                suite: suite.name,
                needs: suite.needs,
                kernel,
                transport,
                tests: suite.cases.into_iter().map(|case| case.name).collect(),
                provoked,
                log_dir: checkout.join("build/test").join(name.replace("::", "/")),
            }
        })
        .filter(|plan| !plan.tests.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use ringbar_guest_tests::case::Suite;
    use ringbar_guest_tests::needs::{Daemon, DeviceKind};

    use super::*;

    #[test]
    fn filters_choose_tests_and_suites() {
        let plans = |kernel, filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|&text| text.into()).collect();
            let selection = Selection {
                all: false,
                transport: Some(Transport::VhostUser),
                filters: &filters,
            };
            plans(Path::new("/x"), kernel, &selection)
        };
        let can = |suite: &Suite| {
            let needs = &suite.needs;
            needs.kernels != Kernels::TestAllOnly
                && needs.transports().include(Transport::VhostUser)
        };
        let all = plans(Kernel::Stock, &[]);
        assert_eq!(all.len(), suites::stock().iter().filter(|s| can(s)).count());
        let debug = plans(Kernel::Debug, &[]);
        assert!(debug.iter().all(|plan| plan.suite != "lies"));
        let has_probe = |plans: &[Plan]| {
            let mut tests = plans.iter().flat_map(|plan| &plan.tests);
            tests.any(|test| test == "d2_faults_in_probe")
        };
        assert!(!has_probe(&debug));
        assert!(has_probe(&plans(Kernel::Debug, &["faults::d2_"])));
        assert_eq!(plans(Kernel::Debug, &["debug::lies::"]).len(), 1);
        assert!(plans(Kernel::Stock, &["debug::driver"]).is_empty());
        assert_eq!(plans(Kernel::Debug, &["debug::driver"]).len(), 1);
        let some = plans(Kernel::Stock, &["mmap::", "b6_aio_eventfd"]);
        let names: Vec<_> = some.iter().map(|plan| plan.suite).collect();
        assert_eq!(names, ["mmap", "async"]);
        assert_eq!(some[1].tests, ["b6_aio_eventfd"]);
        assert!(plans(Kernel::Stock, &["no such test"]).is_empty());
    }

    fn selected(kernel: Kernel, all: bool, transport: Option<Transport>) -> Vec<Plan> {
        let selection = Selection {
            all,
            transport,
            filters: &[],
        };
        plans(Path::new("/x"), kernel, &selection)
    }

    fn names(plans: &[Plan], transport: Transport) -> Vec<&'static str> {
        let plans = plans.iter().filter(|plan| plan.transport == transport);
        plans.map(|plan| plan.suite).collect()
    }

    #[test]
    fn every_day_a_subset_runs_over_vfio_user() {
        let stock = selected(Kernel::Stock, false, None);
        let over_vfio_user = names(&stock, Transport::VfioUser);
        assert!(over_vfio_user.contains(&"probe"), "{over_vfio_user:?}");
        assert!(!over_vfio_user.contains(&"tool"), "{over_vfio_user:?}");
        assert!(names(&stock, Transport::VhostUser).contains(&"tool"));
        let has = |transport, test| {
            let mut plans = stock.iter().filter(|plan| plan.transport == transport);
            plans.any(|plan| plan.tests.iter().any(|other| other == test))
        };
        assert!(has(Transport::VhostUser, "dr4_stages_of_hibernation"));
        assert!(!has(Transport::VfioUser, "dr4_stages_of_hibernation"));
        assert!(has(Transport::VfioUser, "dr4_suspend_to_ram_twice"));
        let debug = selected(Kernel::Debug, false, None);
        assert!(!names(&debug, Transport::VfioUser).contains(&"driver"));
    }

    #[test]
    fn everything_that_can_runs_over_both_transports() {
        for kernel in [Kernel::Stock, Kernel::Debug] {
            let suites = match kernel {
                Kernel::Stock => suites::stock(),
                Kernel::Debug => suites::debug(),
            };
            let all = selected(kernel, true, None);
            for transport in Transport::ALL {
                let can = suites.iter().filter(|suite| {
                    // A suite may have no test for the debug kernel.
                    suite.needs.transports().include(transport) && !suite.cases.is_empty()
                });
                let can: Vec<_> = can.map(|suite| suite.name).collect();
                assert_eq!(names(&all, transport), can);
                let only = selected(kernel, true, Some(transport));
                assert_eq!(names(&only, transport), can);
                assert_eq!(only.len(), can.len());
            }
        }
    }

    #[test]
    fn a_test_that_stops_the_device_does_not_run_over_vfio_user() {
        let has = |transport| {
            let plans = selected(Kernel::Debug, true, Some(transport));
            let mut tests = plans.into_iter().flat_map(|plan| plan.tests);
            tests.any(|test| test == "b11_nowait_on_a_full_queue")
        };
        assert!(has(Transport::VhostUser));
        assert!(!has(Transport::VfioUser));
    }

    #[test]
    fn names_say_over_what_a_suite_runs() {
        let any = Needs::default();
        let name = |needs, kernel, transport| full_name("x", needs, kernel, transport);
        assert_eq!(name(&any, Kernel::Stock, Transport::VhostUser), "x");
        assert_eq!(
            name(&any, Kernel::Debug, Transport::VfioUser),
            "debug::vfio-user::x"
        );
        let only = Needs {
            device: DeviceKind::Daemon(Daemon {
                transports: Transports::Only(Transport::VfioUser, "a test"),
                ..Daemon::default()
            }),
            ..Needs::default()
        };
        assert_eq!(name(&only, Kernel::Stock, Transport::VfioUser), "x");
    }
}
