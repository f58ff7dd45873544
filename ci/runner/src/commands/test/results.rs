// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The results of suites, as they arrive, and as a table.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};
use ringbar_agent_protocol::machine::Iommu;
use ringbar_guest_tests::needs::DeviceKind;
use ringbar_runner::ktap::Outcome;
use ringbar_runner::suite;
use ringbar_runner::suite::checks::Check;
use ringbar_runner::suite::plan::{Plan, Report};
use ringbar_vm::setup::Setup;

use super::selection::full_name;

/// Runs a suite, and sends its results.
pub(super) struct Job {
    setup: Arc<Setup>,
    plan: Plan,
    results: Sender<Report>,
    time: Arc<OnceLock<Duration>>,
}

impl Job {
    /// Runs the suite to its end.
    pub(super) fn run(self) {
        let started = Instant::now();
        suite::run(&self.setup, &self.plan, &self.results);
        let _ = self.time.set(started.elapsed());
        // The end of the channel comes last.
        drop(self.results);
    }
}

/// Results of a suite. The suite starts when the first result is requested, unless its job was
/// taken.
pub(super) struct Results {
    plan: Plan,
    job: Option<Job>,
    incoming: Receiver<Report>,
    /// How long the suite took, once it has ended.
    time: Arc<OnceLock<Duration>>,
    known: HashMap<String, Report>,
    /// Whether a test has already reported the full reason for missing results.
    explained: bool,
}

impl Results {
    pub(super) fn new(setup: Arc<Setup>, plan: Plan) -> Self {
        let (results, incoming) = mpsc::channel();
        let time = Arc::new(OnceLock::new());
        Self {
            plan: plan.clone(),
            job: Some(Job {
                setup,
                plan,
                results,
                time: Arc::clone(&time),
            }),
            incoming,
            time,
            known: HashMap::new(),
            explained: false,
        }
    }

    /// The run of the suite, for a thread that starts it without being asked for a result.
    pub(super) fn take_job(&mut self) -> Option<Job> {
        self.job.take()
    }

    pub(super) fn wait_for(&mut self, name: &str) -> Result<Completion, Failed> {
        if let Some(job) = self.job.take() {
            thread::Builder::new()
                .name(self.plan.suite.into())
                .spawn(|| job.run())
                .map_err(|error| Failed::from(format!("starting the suite: {error}")))?;
        }
        while !self.known.contains_key(name) {
            match self.incoming.recv() {
                Ok(report) => self.known.insert(report.name.clone(), report),
                Err(_) => return Err(self.missing()),
            };
        }
        match self.known.get(name).cloned() {
            Some(report) => conclude(report),
            None => Err(self.missing()),
        }
    }

    /// Waits until the suite has ended; returns its line of the table, if it was started.
    pub(super) fn finish(&mut self) -> Option<SuiteLine> {
        if self.job.is_some() {
            return None;
        }
        // Results that nobody waited for.
        let left = self.incoming.iter();
        self.known
            .extend(left.map(|report| (report.name.clone(), report)));
        // Without a time the suite panicked, which shows as missing results.
        let time = self.time.get().copied().unwrap_or_default();
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
pub(super) struct SuiteLine {
    pub(super) name: String,
    pub(super) transport: &'static str,
    pub(super) iommu: Iommu,
    pub(super) time: Duration,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

/// The suites that were run, as a table.
pub(super) fn suite_table(lines: &[SuiteLine]) -> String {
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
    use std::path::PathBuf;

    use ringbar_agent_protocol::machine::Transport;
    use ringbar_guest_tests::needs::Needs;
    use ringbar_vm::setup::Kernel;

    use super::*;

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
        let job = results.take_job().unwrap();
        for report in reports {
            job.results.send(report).unwrap();
        }
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
