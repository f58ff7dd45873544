// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci test`: the tests in virtual machines.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::Context;
use clap::{Args, ValueEnum};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use ringbar_agent_protocol::machine::{Iommu, TRANSPORT_VARIABLE, Transport};
use ringbar_guest_tests::case::{Case, OnDebugKernel};
use ringbar_guest_tests::needs::{DeviceKind, Kernels, Needs, Transports};
use ringbar_guest_tests::suites;
use ringbar_runner::binding;
use ringbar_runner::ktap::Outcome;
use ringbar_runner::refusal::{self, BEHIND_IOMMU};
use ringbar_runner::suite;
use ringbar_runner::suite::checks::Check;
use ringbar_runner::suite::plan::{Plan, Report};
use ringbar_runner::unplug::{self, Machine};
use ringbar_vm::setup::{Kernel, OutputDir, Setup};

/// Tests the driver in virtual machines, one for each suite
///
/// Names of tests on the debug kernel begin with `debug::`. Names of tests over vfio-user
/// contain `vfio-user::` if the suite runs over vhost-user too. The last line is the number of
/// tests, including those of --unit-log.
#[derive(Debug, Args)]
pub struct Options {
    /// Output of `cargo test`, whose results are added to the last line
    #[arg(long, value_name = "FILE")]
    unit_log: Option<PathBuf>,

    /// Run on this kernel only
    #[arg(long, value_enum, value_name = "KERNEL")]
    kernel: Option<KernelName>,

    /// Run all that can over this transport, and nothing over the other one
    /// [default: all that can over vhost-user, and over vfio-user what depends on it]
    #[arg(long, env = TRANSPORT_VARIABLE, value_name = "NAME")]
    transport: Option<Transport>,

    /// Also run the suites that are too slow on the debug kernel for daily use, and all that
    /// can over both transports. A FILTER selects among all suites
    #[arg(long)]
    all: bool,

    /// List the tests instead of running them
    #[arg(long)]
    list: bool,

    /// Run only tests whose name, `suite::test`, contains one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// Names of the kernels on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KernelName {
    /// Debian's kernel
    Stock,
    /// The kernel of `make debug`, with all checkers
    Debug,
}

impl From<KernelName> for Kernel {
    fn from(name: KernelName) -> Self {
        match name {
            KernelName::Stock => Self::Stock,
            KernelName::Debug => Self::Debug,
        }
    }
}

/// Runs the tests.
pub fn run(setup: &Setup, options: &Options) -> anyhow::Result<ExitCode> {
    let unit = match &options.unit_log {
        Some(path) => {
            let text =
                fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            count_unit_tests(&text)
        }
        None => Counts::default(),
    };
    let kernels = match options.kernel {
        Some(kernel) => vec![kernel.into()],
        None => vec![Kernel::Stock, Kernel::Debug],
    };
    let selection = Selection {
        all: options.all,
        transport: options.transport,
        filters: &options.filters,
    };
    let plans: Vec<_> = kernels
        .iter()
        .flat_map(|&kernel| plans(&setup.checkout, kernel, &selection))
        .collect();
    let arguments = Arguments {
        list: options.list,
        // One virtual machine at a time, and results in order.
        test_threads: Some(1),
        ..Arguments::default()
    };
    let machines: Vec<_> = unplug::MACHINES
        .into_iter()
        .filter(|machine| kernels.contains(&machine.kernel) && selection.runs_machine(machine))
        .collect();
    let debug = plans.iter().any(|plan| plan.kernel == Kernel::Debug)
        || machines
            .iter()
            .any(|machine| machine.kernel == Kernel::Debug);
    let debug = match debug && !options.list {
        true => Some(
            setup
                .with_debug_kernel()
                .context("loading the record of the debug kernel; run `make debug`")?,
        ),
        false => None,
    };
    let setup = Arc::new(setup.clone());
    let debug = debug.map_or_else(|| Arc::clone(&setup), Arc::new);
    let mut all = Vec::new();
    let mut suites = Vec::new();
    for plan in plans {
        let setup = match plan.kernel {
            Kernel::Stock => &setup,
            Kernel::Debug => &debug,
        };
        let (suite, trials) = trials(setup, plan);
        suites.push(suite);
        all.extend(trials);
    }
    let vhost_user = selection.includes(Transport::VhostUser);
    if kernels.contains(&Kernel::Stock) && vhost_user {
        for (name, iommu) in BEHIND_IOMMU {
            if wanted(&options.filters, name) {
                let setup = Arc::clone(&setup);
                all.push(Trial::test(name, move || {
                    let log_dir = setup.checkout.join("build/test/refusal").join(iommu.name());
                    refusal::behind_iommu(&setup, iommu, &log_dir).map_err(Failed::from)
                }));
            }
        }
    }
    if kernels.contains(&Kernel::Stock) && vhost_user {
        let setup = Arc::clone(&setup);
        let log_dir = setup.checkout.join("build/test/binding");
        let run = move || binding::run(&setup, &log_dir);
        all.extend(steps(binding::names(), &options.filters, run));
    }
    for machine in machines {
        let setup = match machine.kernel {
            Kernel::Stock => Arc::clone(&setup),
            Kernel::Debug => Arc::clone(&debug),
        };
        let log_dir = setup.checkout.join("build/test");
        let log_dir = log_dir.join(machine.name.replace("::", "/"));
        let run = move || unplug::run(&setup, &machine, &log_dir);
        all.extend(steps(unplug::names(&machine), &options.filters, run));
    }
    if all.is_empty() {
        anyhow::bail!("no test matches");
    }
    let _output = match options.list {
        true => None,
        false => Some(OutputDir::of(&setup, "test")?),
    };
    let conclusion = libtest_mimic::run(&arguments, all);
    // The last result of a suite arrives before its machine is shut down.
    let lines: Vec<_> = suites
        .iter()
        .filter_map(|suite| {
            suite
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .finish()
        })
        .collect();
    if options.list {
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", suite_table(&lines));
    let total = Counts {
        passed: unit.passed + conclusion.num_passed,
        failed: unit.failed + conclusion.num_failed,
    };
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Number of passed and failed tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; …` of `cargo test`.
fn count_unit_tests(log: &str) -> Counts {
    let mut counts = Counts::default();
    for line in log.lines() {
        let Some(rest) = line.trim_start().strip_prefix("test result: ") else {
            continue;
        };
        let (_, numbers) = rest.split_once(". ").unwrap_or(("", rest));
        for part in numbers.split(';') {
            let mut words = part.split_ascii_whitespace();
            let number = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => counts.passed += number,
                Some("failed") => counts.failed += number,
                _ => {}
            }
        }
    }
    counts
}

/// Whether a test is selected.
fn wanted(filters: &[String], name: &str) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

/// Which tests run.
struct Selection<'a> {
    /// Whether suites run that are not for every day.
    all: bool,
    /// The only transport.
    transport: Option<Transport>,
    /// Parts of the names of tests.
    filters: &'a [String],
}

impl Selection<'_> {
    /// Whether tests run over a transport.
    fn includes(&self, transport: Transport) -> bool {
        self.transport.is_none_or(|only| only == transport)
    }

    /// Whether only the tests for every day run.
    fn is_daily(&self) -> bool {
        !self.all && self.filters.is_empty()
    }

    /// Whether a machine in which the device is unplugged is needed.
    fn runs_machine(&self, machine: &Machine) -> bool {
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
        case.transports.include(transport)
            && !(self.is_daily()
                && kernel == Kernel::Debug
                && case.on_debug_kernel == OnDebugKernel::InTestAll)
    }
}

/// Name of a suite as part of the names of its tests.
fn full_name(suite: &str, needs: &Needs, kernel: Kernel, transport: Transport) -> String {
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
fn plans(checkout: &Path, kernel: Kernel, selection: &Selection<'_>) -> Vec<Plan> {
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

/// The tests of a suite, in the order of their results.
fn trials(setup: &Arc<Setup>, plan: Plan) -> (Arc<Mutex<Results>>, Vec<Trial>) {
    let suite = full_name(plan.suite, &plan.needs, plan.kernel, plan.transport);
    let checks = Check::of(&plan.needs, plan.kernel);
    let names: Vec<String> = plan
        .tests
        .iter()
        .cloned()
        .chain(checks.into_iter().map(|c| c.name().to_owned()))
        .collect();
    let results = Arc::new(Mutex::new(Results::new(Arc::clone(setup), plan)));
    let trials = names
        .into_iter()
        .map(|name| {
            let results = Arc::clone(&results);
            Trial::ignorable_test(format!("{suite}::{name}"), move || {
                results
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .wait_for(&name)
            })
        })
        .collect();
    (results, trials)
}

/// The selected ones of tests that share a virtual machine, which all run when the first one
/// starts.
fn steps(
    names: impl Iterator<Item = String>,
    filters: &[String],
    run: impl Fn() -> Vec<Result<(), String>> + Send + Sync + 'static,
) -> Vec<Trial> {
    let run = Arc::new(run);
    let outcomes = Arc::new(OnceLock::new());
    names
        .enumerate()
        .filter(|(_, name)| wanted(filters, name))
        .map(|(number, name)| {
            let (run, outcomes) = (Arc::clone(&run), Arc::clone(&outcomes));
            Trial::test(name, move || {
                let outcomes: &Vec<_> = outcomes.get_or_init(|| run());
                outcomes[number].clone().map_err(Failed::from)
            })
        })
        .collect()
}

/// Results of a suite. The suite starts when the first result is requested.
struct Results {
    setup: Arc<Setup>,
    plan: Plan,
    incoming: Option<Receiver<Report>>,
    thread: Option<JoinHandle<Duration>>,
    known: HashMap<String, Report>,
    /// Whether a test has already reported the full reason for missing results.
    explained: bool,
}

impl Results {
    fn new(setup: Arc<Setup>, plan: Plan) -> Self {
        Self {
            setup,
            plan,
            incoming: None,
            thread: None,
            known: HashMap::new(),
            explained: false,
        }
    }

    fn wait_for(&mut self, name: &str) -> Result<Completion, Failed> {
        if self.incoming.is_none() {
            self.start()?;
        }
        while !self.known.contains_key(name) {
            match self.incoming.as_ref().and_then(|i| i.recv().ok()) {
                Some(report) => self.known.insert(report.name.clone(), report),
                None => return Err(self.missing()),
            };
        }
        match self.known.get(name).cloned() {
            Some(report) => conclude(report),
            None => Err(self.missing()),
        }
    }

    fn start(&mut self) -> Result<(), Failed> {
        let (sender, receiver) = mpsc::channel();
        let (setup, plan) = (Arc::clone(&self.setup), self.plan.clone());
        let thread = thread::Builder::new()
            .name(self.plan.suite.into())
            .spawn(move || {
                let started = Instant::now();
                suite::run(&setup, &plan, &sender);
                started.elapsed()
            })
            .map_err(|error| Failed::from(format!("starting the suite: {error}")))?;
        self.incoming = Some(receiver);
        self.thread = Some(thread);
        Ok(())
    }

    /// Waits until the suite has ended; returns its line of the table, if it was started.
    fn finish(&mut self) -> Option<SuiteLine> {
        // A panic shows as a missing result.
        let time = self.thread.take()?.join().ok()?;
        // Results that nobody waited for.
        let left = self.incoming.take().into_iter().flatten();
        self.known
            .extend(left.map(|report| (report.name.clone(), report)));
        let plan = &self.plan;
        let count = |has: fn(&Outcome) -> bool| {
            let reports = self.known.values();
            reports.filter(|report| has(&report.outcome)).count()
        };
        let passed = count(|outcome| *outcome == Outcome::Passed);
        let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
        // A test without a result has failed.
        let tests = plan.tests.len() + Check::of(&plan.needs, plan.kernel).len();
        Some(SuiteLine {
            name: full_name(plan.suite, &plan.needs, plan.kernel, plan.transport),
            transport: match plan.needs.device {
                DeviceKind::Daemon(_) => plan.transport.name(),
                DeviceKind::PciFunction => "function",
            },
            iommu: plan.needs.iommu,
            time,
            passed,
            failed: tests - passed - skipped,
            skipped,
        })
    }

    /// The reason for a missing result: in full for the first such test.
    fn missing(&mut self) -> Failed {
        let reason = self
            .known
            .get(Check::AllTestsRan.name())
            .map_or("the suite ended early", |report| report.message.as_str());
        let text = if self.explained {
            let first = reason.lines().next().unwrap_or_default();
            format!("not run: {first}")
        } else {
            format!("not run, or not to its end: {reason}")
        };
        self.explained = true;
        text.into()
    }
}

/// What a suite was run on, with its results.
struct SuiteLine {
    name: String,
    transport: &'static str,
    iommu: Iommu,
    time: Duration,
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// The suites that were run, as a table.
fn suite_table(lines: &[SuiteLine]) -> String {
    let mut table = String::from("seconds passed failed skipped transport  iommu        suite\n");
    for line in lines {
        let (transport, iommu) = (line.transport, line.iommu.name());
        let _ = writeln!(
            table,
            "{:>7} {:>6} {:>6} {:>7} {transport:<10} {iommu:<12} {}",
            line.time.as_secs(),
            line.passed,
            line.failed,
            line.skipped,
            line.name,
        );
    }
    table
}

fn conclude(report: Report) -> Result<Completion, Failed> {
    match report.outcome {
        Outcome::Passed => Ok(Completion::Completed),
        Outcome::Skipped(reason) => Ok(Completion::ignored_with(reason)),
        Outcome::Failed => Err(report.message.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbar_guest_tests::case::Suite;
    use ringbar_guest_tests::needs::Daemon;

    #[test]
    fn unit_test_results_are_added_up() {
        let log = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s\n\
            test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out\n\
            something passed; 9 failed\n";
        assert_eq!(
            count_unit_tests(log),
            Counts {
                passed: 7,
                failed: 2
            }
        );
        assert_eq!(count_unit_tests(""), Counts::default());
    }

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

    #[test]
    fn the_table_has_a_line_for_each_suite() {
        let line = SuiteLine {
            name: "debug::iommu".into(),
            transport: "vfio-user",
            iommu: Iommu::Intel,
            time: Duration::from_millis(61_900),
            passed: 12,
            failed: 1,
            skipped: 0,
        };
        assert_eq!(
            suite_table(&[line]).lines().nth(1),
            Some("     61     12      1       0 vfio-user  intel-iommu  debug::iommu")
        );
    }

    fn results(reports: Vec<Report>) -> Results {
        let (sender, receiver) = mpsc::channel();
        for report in reports {
            sender.send(report).unwrap();
        }
        let setup = Setup {
            kernel_release: String::new(),
            kernel_image: PathBuf::new(),
            qemu: Vec::new(),
            qemu_version: String::new(),
            initramfs: PathBuf::new(),
            accel: ringbar_vm::setup::Accelerator::Tcg,
            device: PathBuf::new(),
            checkout: PathBuf::new(),
        };
        let plan = Plan {
            suite: "data",
            needs: Needs::default(),
            kernel: Kernel::Stock,
            transport: Transport::VhostUser,
            tests: Vec::new(),
            provoked: Vec::new(),
            log_dir: PathBuf::new(),
        };
        let mut results = Results::new(Arc::new(setup), plan);
        results.incoming = Some(receiver);
        results
    }

    fn report(name: &str, outcome: Outcome, message: &str) -> Report {
        Report {
            name: name.into(),
            outcome,
            message: message.into(),
        }
    }

    #[test]
    fn a_test_that_a_crash_prevented_fails_with_the_reason() {
        let mut results = results(vec![
            report("a", Outcome::Passed, ""),
            report("all_tests_ran", Outcome::Failed, "the guest went away\nlog"),
        ]);
        assert!(results.wait_for("a").is_ok());
        let first = results.wait_for("b").err().unwrap();
        assert_eq!(
            first.message(),
            Some("not run, or not to its end: the guest went away\nlog")
        );
        let second = results.wait_for("c").err().unwrap();
        assert_eq!(second.message(), Some("not run: the guest went away"));
        // The check itself fails as well, with the full reason.
        let check = results.wait_for("all_tests_ran").err().unwrap();
        assert_eq!(check.message(), Some("the guest went away\nlog"));
    }

    #[test]
    fn skipped_tests_are_neither_passed_nor_failed() {
        let mut results = results(vec![report("a", Outcome::Skipped("no memory".into()), "")]);
        assert!(matches!(
            results.wait_for("a"),
            Ok(Completion::Ignored { .. })
        ));
    }
}
