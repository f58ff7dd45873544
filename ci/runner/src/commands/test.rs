// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci test`: the tests in virtual machines.

use std::collections::HashMap;
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
use ringbar_guest_tests::case::{Case, OnDebugKernel};
use ringbar_guest_tests::needs::{Kernels, Needs};
use ringbar_guest_tests::suites;
use ringbar_runner::binding;
use ringbar_runner::ktap::Outcome;
use ringbar_runner::refusal::{self, BEHIND_IOMMU};
use ringbar_runner::suite;
use ringbar_runner::suite::checks::Check;
use ringbar_runner::suite::plan::{Plan, Report};
use ringbar_vm::setup::{Kernel, OutputDir, Setup};

/// Tests the driver in virtual machines, one for each suite
///
/// Names of tests on the debug kernel begin with `debug::`. The last line is the number
/// of tests, including those of --unit-log.
#[derive(Debug, Args)]
pub struct Options {
    /// Output of `cargo test`, whose results are added to the last line
    #[arg(long, value_name = "FILE")]
    unit_log: Option<PathBuf>,

    /// Run on this kernel only
    #[arg(long, value_enum, value_name = "KERNEL")]
    kernel: Option<KernelName>,

    /// Also run the suites that are too slow on the debug kernel for daily use. A FILTER
    /// selects among all suites
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
    let plans: Vec<_> = kernels
        .iter()
        .flat_map(|&kernel| plans(&setup.checkout, kernel, options.all, &options.filters))
        .collect();
    let arguments = Arguments {
        list: options.list,
        // One virtual machine at a time, and results in order.
        test_threads: Some(1),
        ..Arguments::default()
    };
    let debug = plans.iter().any(|plan| plan.kernel == Kernel::Debug);
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
    if kernels.contains(&Kernel::Stock) && wanted(&options.filters, BEHIND_IOMMU) {
        let setup = Arc::clone(&setup);
        all.push(Trial::test(BEHIND_IOMMU, move || {
            let log_dir = setup.checkout.join("build/test/refusal");
            refusal::behind_iommu(&setup, &log_dir).map_err(Failed::from)
        }));
    }
    if kernels.contains(&Kernel::Stock) {
        all.extend(binding_trials(&setup, &options.filters));
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
    let times: Vec<_> = suites
        .iter()
        .filter_map(|suite| {
            let mut suite = suite.lock().unwrap_or_else(PoisonError::into_inner);
            let time = suite.finish()?;
            let name = format!("{}{}", prefix(suite.plan.kernel), suite.plan.suite);
            Some((name, time))
        })
        .collect();
    if options.list {
        return Ok(ExitCode::SUCCESS);
    }
    println!("seconds by suite:");
    for (name, time) in times {
        println!("{:>6} {name}", time.as_secs());
    }
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

/// Prefix of the names of tests on a kernel.
fn prefix(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Stock => "",
        Kernel::Debug => "debug::",
    }
}

/// The suites with the selected tests.
fn plans(checkout: &Path, kernel: Kernel, all: bool, filters: &[String]) -> Vec<Plan> {
    let for_every_day = !all && filters.is_empty() && kernel == Kernel::Debug;
    let left_out = |needs: &Needs, case: &Case| {
        for_every_day
            && (needs.kernels == Kernels::OwnInTestAll
                || case.on_debug_kernel == OnDebugKernel::InTestAll)
    };
    let prefix = prefix(kernel);
    let (suites, log_dir) = match kernel {
        Kernel::Stock => (suites::stock(), checkout.join("build/test")),
        Kernel::Debug => (suites::debug(), checkout.join("build/test/debug")),
    };
    suites
        .into_iter()
        .map(|mut suite| {
            let name = suite.name;
            suite.cases.retain(|case| {
                wanted(filters, &format!("{prefix}{name}::{}", case.name))
                    && !left_out(&suite.needs, case)
            });
            let provoked = suite
                .cases
                .iter()
                .flat_map(|case| case.provoked.iter().map(|what| (case.name.clone(), *what)))
                .collect();
            Plan {
                suite: name,
                needs: suite.needs,
                kernel,
                tests: suite.cases.into_iter().map(|case| case.name).collect(),
                provoked,
                log_dir: log_dir.join(name),
            }
        })
        .filter(|plan| !plan.tests.is_empty())
        .collect()
}

/// The tests of a suite, in the order of their results.
fn trials(setup: &Arc<Setup>, plan: Plan) -> (Arc<Mutex<Results>>, Vec<Trial>) {
    let suite = format!("{}{}", prefix(plan.kernel), plan.suite);
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

/// The selected binding tests. All of them run when the first one starts.
fn binding_trials(setup: &Arc<Setup>, filters: &[String]) -> Vec<Trial> {
    let outcomes = Arc::new(OnceLock::new());
    binding::names()
        .enumerate()
        .filter(|(_, name)| wanted(filters, name))
        .map(|(number, name)| {
            let (setup, outcomes) = (Arc::clone(setup), Arc::clone(&outcomes));
            Trial::test(name, move || {
                let log_dir = setup.checkout.join("build/test/binding");
                let outcomes: &Vec<_> = outcomes.get_or_init(|| binding::run(&setup, &log_dir));
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

    /// Waits until the suite has ended; returns its duration, if it was started.
    fn finish(&mut self) -> Option<Duration> {
        // A panic shows as a missing result.
        self.thread.take()?.join().ok()
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
            plans(Path::new("/x"), kernel, false, &filters)
        };
        let all = plans(Kernel::Stock, &[]);
        assert_eq!(all.len(), suites::stock().len());
        let debug = plans(Kernel::Debug, &[]);
        assert!(debug.iter().all(|plan| plan.suite != "lies"));
        let has_probe = |plans: &[Plan]| {
            let mut tests = plans.iter().flat_map(|plan| &plan.tests);
            tests.any(|test| test == "d2_faults_in_probe")
        };
        assert!(!has_probe(&debug));
        assert!(has_probe(&plans(Kernel::Debug, &["faults::d2_"])));
        let debug = super::plans(Path::new("/x"), Kernel::Debug, true, &[]);
        assert_eq!(debug.len(), suites::debug().len());
        assert_eq!(plans(Kernel::Debug, &["debug::lies::"]).len(), 1);
        assert!(plans(Kernel::Stock, &["debug::driver"]).is_empty());
        assert_eq!(plans(Kernel::Debug, &["debug::driver"]).len(), 1);
        let some = plans(Kernel::Stock, &["mmap::", "b6_aio_eventfd"]);
        let names: Vec<_> = some.iter().map(|plan| plan.suite).collect();
        assert_eq!(names, ["mmap", "async"]);
        assert_eq!(some[1].tests, ["b6_aio_eventfd"]);
        assert!(plans(Kernel::Stock, &["no such test"]).is_empty());
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
