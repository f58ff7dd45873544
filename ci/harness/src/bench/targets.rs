// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What Ringbar is to reach.

use serde::Serialize;

use super::column::Column;
use super::idle::Idle;
use super::job::Job;
use super::jobs;
use super::report::Results;
use super::statistics::round;

/// What a ratio is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The peer with the highest median in this job.
    BestPeer,
    /// This column.
    Column(Column),
}

/// What is looked at, in the column `ringbar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    /// Median of the ratios of transfers per second in the same round.
    Ratio(Reference),
    /// Doorbells for each transfer.
    Doorbells,
    /// Interrupts for each transfer.
    Interrupts,
}

/// How a value counts as good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Bound {
    /// This much or more.
    #[serde(rename = "at_least")]
    AtLeast(f64),
    /// This much or less.
    #[serde(rename = "at_most")]
    AtMost(f64),
}

use Bound::{AtLeast, AtMost};
use Metric::{Doorbells, Interrupts, Ratio};

/// Most of the guest's time, in CPUs, that may go by while nothing is done: its clock
/// and the agent. A processor that polls would be all of one.
const IDLE_CPUS: f64 = 0.1;

/// How much more a byte may cost in larger blocks before it counts as more.
const COST_TOLERANCE: f64 = 1.1;

const BEST_PEER: Metric = Ratio(Reference::BestPeer);
const PLAIN: Metric = Ratio(Reference::Column(Column::RingbarPlain));
const INTERRUPT: Metric = Ratio(Reference::Column(Column::RingbarInterrupt));
const MEMCPY: Metric = Ratio(Reference::Column(Column::Memcpy));

/// The targets, in the order in which their jobs are run.
const TARGETS: &[(&str, Metric, Bound)] = &[
    ("randread-4k-qd32-io_uring", BEST_PEER, AtLeast(5.0)),
    ("randread-4k-qd32-io_uring", Doorbells, AtMost(0.5)),
    ("randread-4k-qd32-io_uring", Interrupts, AtMost(0.5)),
    ("randwrite-4k-qd32-io_uring", BEST_PEER, AtLeast(5.0)),
    ("randwrite-4k-qd32-io_uring", Doorbells, AtMost(0.5)),
    ("randwrite-4k-qd32-io_uring", Interrupts, AtMost(0.5)),
    ("randread-4k-qd32-libaio", BEST_PEER, AtLeast(4.0)),
    ("randread-4k-qd32-libaio", Doorbells, AtMost(0.5)),
    ("randread-4k-qd32-libaio", Interrupts, AtMost(0.5)),
    ("randwrite-4k-qd32-libaio", BEST_PEER, AtLeast(4.0)),
    ("randwrite-4k-qd32-libaio", Doorbells, AtMost(0.5)),
    ("randwrite-4k-qd32-libaio", Interrupts, AtMost(0.5)),
    ("randread-4k-qd1-io_uring", BEST_PEER, AtLeast(5.0)),
    ("randread-4k-qd1-psync", BEST_PEER, AtLeast(5.0)),
    ("randread-4k-qd32-io_uring-batch8", BEST_PEER, AtLeast(2.0)),
    ("randread-4k-qd32-io_uring-batch8", Doorbells, AtMost(0.1)),
    ("randread-4k-qd32-io_uring-batch8", Interrupts, AtMost(0.1)),
    ("read-128k-qd8-io_uring", BEST_PEER, AtLeast(4.0)),
    ("write-128k-qd8-io_uring", BEST_PEER, AtLeast(4.0)),
    ("read-1m-qd4-io_uring", BEST_PEER, AtLeast(2.5)),
    ("read-1m-qd4-io_uring", MEMCPY, AtLeast(0.8)),
    ("write-1m-qd4-io_uring", BEST_PEER, AtLeast(2.5)),
    ("write-1m-qd4-io_uring", MEMCPY, AtLeast(0.8)),
    ("randread-4k-qd32-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("randwrite-4k-qd32-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("read-128k-qd8-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("write-128k-qd8-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("randread-4k-qd32-io_uring-iopoll", INTERRUPT, AtLeast(1.0)),
    ("randread-4k-qd32-io_uring-iopoll", Interrupts, AtMost(0.0)),
    ("randwrite-4k-qd32-io_uring-iopoll", INTERRUPT, AtLeast(1.0)),
    ("randwrite-4k-qd32-io_uring-iopoll", Interrupts, AtMost(0.0)),
    ("randread-4k-qd32-io_uring-j2", BEST_PEER, AtLeast(4.0)),
];

/// All jobs that have a target.
pub fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    // Every name is one, as a test shows.
    for job in TARGETS.iter().filter_map(|(name, ..)| name.parse().ok()) {
        if !jobs.contains(&job) {
            jobs.push(job);
        }
    }
    jobs
}

/// A target and what was reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetResult {
    /// Job, or what else was looked at.
    pub job: String,
    /// What was measured.
    pub metric: String,
    /// What it is to be.
    pub bound: Bound,
    /// What it is; `None` where it was not measured, because devices were left out.
    pub value: Option<f64>,
    /// Whether that is good; `None` where there is no value.
    pub met: Option<bool>,
}

impl TargetResult {
    fn new(job: &str, metric: &str, bound: Bound, value: Option<f64>) -> Self {
        // As it is printed, so that what is printed agrees.
        let value = value.map(|value| round(value, 3));
        Self {
            job: job.to_owned(),
            metric: metric.to_owned(),
            bound,
            value,
            met: value.map(|value| match bound {
                AtLeast(bound) => value >= bound,
                AtMost(bound) => value <= bound,
            }),
        }
    }
}

impl Metric {
    fn name(self) -> String {
        match self {
            Ratio(Reference::BestPeer) => "ratio to best_peer".into(),
            Ratio(Reference::Column(column)) => format!("ratio to {column}"),
            Doorbells => "doorbells_per_io".into(),
            Interrupts => "interrupts_per_io".into(),
        }
    }

    fn value(self, results: &Results, job: &str) -> Option<f64> {
        match self {
            Ratio(reference) => results.ratio(job, reference).map(|line| line.ratio),
            Doorbells => results.line(job, Column::Ringbar)?.doorbells_per_io,
            Interrupts => results.line(job, Column::Ringbar)?.interrupts_per_io,
        }
    }
}

/// Compares results with the targets of their jobs.
pub fn evaluate(results: &Results, idle: Option<&Idle>) -> Vec<TargetResult> {
    let mut evaluated = Vec::new();
    for (job, metric, bound) in TARGETS {
        if results.has_job(job) {
            let value = metric.value(results, job);
            evaluated.push(TargetResult::new(job, &metric.name(), *bound, value));
        }
    }
    evaluated.extend(evaluate_sweep(results));
    if let Some(idle) = idle {
        let wakeups = idle.wakeups_per_second(Column::Ringbar);
        evaluated.push(TargetResult::new(
            "idle",
            "wakeups_per_second",
            AtMost(0.0),
            wakeups,
        ));
        let cpus = Some(idle.guest_cpus);
        evaluated.push(TargetResult::new(
            "idle",
            "guest_cpus",
            AtMost(IDLE_CPUS),
            cpus,
        ));
    }
    evaluated
}

/// In no point of the sweep behind, and a byte no dearer in larger blocks.
fn evaluate_sweep(results: &Results) -> Vec<TargetResult> {
    let mut evaluated = Vec::new();
    let measured: Vec<_> = jobs::sweep()
        .into_iter()
        .filter(|job| results.has_job(&job.to_string()))
        .collect();
    for name in measured.iter().map(Job::to_string) {
        // Some have a higher target, which says it all.
        let has_another =
            |(job, metric, _): &(&str, Metric, Bound)| *job == name && *metric == BEST_PEER;
        if !TARGETS.iter().any(has_another) {
            let value = BEST_PEER.value(results, &name);
            evaluated.push(TargetResult::new(
                &name,
                &BEST_PEER.name(),
                AtLeast(1.0),
                value,
            ));
        }
    }
    // The best of all rounds: the sizes are not measured in the same moment.
    let cost = |job: &Job| {
        let line = results.line(&job.to_string(), Column::Ringbar)?;
        (line.iops_max > 0.0).then(|| 1.0 / (line.iops_max * job.block as f64))
    };
    for job in &measured {
        let smaller = measured
            .iter()
            .filter(|other| other.block < job.block)
            .filter(|other| {
                Job {
                    block: job.block,
                    ..**other
                } == *job
            })
            .max_by_key(|other| other.block);
        if let Some(smaller) = smaller {
            let value = cost(job)
                .zip(cost(smaller))
                .map(|(large, small)| large / small);
            let metric = format!("cost of a byte over that in {smaller}");
            evaluated.push(TargetResult::new(
                &job.to_string(),
                &metric,
                AtMost(COST_TOLERANCE),
                value,
            ));
        }
    }
    evaluated
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::results;
    use super::*;

    #[test]
    fn every_target_names_a_job_that_can_show_it() {
        for (name, metric, _) in TARGETS {
            let job: Job = name.parse().unwrap();
            assert_eq!(job.to_string(), *name);
            if let Ratio(Reference::Column(column)) = metric {
                assert!(column.variant(job).is_some(), "{name} {column}");
            }
        }
        assert_eq!(jobs().len(), 18);
    }

    #[test]
    fn targets_are_met_or_missed_or_unknown() {
        let name = "read-1m-qd4-io_uring";
        let measured = results(&[
            (name, Column::Ringbar, &[900.0, 950.0, 800.0]),
            (name, Column::Nvme, &[300.0, 310.0, 400.0]),
        ]);
        let evaluated = evaluate(&measured, None);
        assert_eq!(evaluated.len(), 2);
        assert_eq!(
            (evaluated[0].value, evaluated[0].met),
            (Some(3.0), Some(true))
        );
        assert_eq!((evaluated[1].value, evaluated[1].met), (None, None));
        let measured = results(&[
            (name, Column::Ringbar, &[700.0]),
            (name, Column::Memcpy, &[1000.0]),
        ]);
        assert_eq!(evaluate(&measured, None)[1].met, Some(false));
    }

    #[test]
    fn a_sweep_is_judged_by_peers_and_by_size() {
        let (small, large) = ("read-4k-qd1-io_uring", "read-64k-qd1-io_uring");
        let measured = results(&[
            (small, Column::Ringbar, &[1600.0]),
            (small, Column::Nvme, &[1500.0]),
            (large, Column::Ringbar, &[50.0]),
            (large, Column::Nvme, &[60.0]),
        ]);
        let met: Vec<_> = evaluate(&measured, None)
            .iter()
            .map(|verdict| verdict.met)
            .collect();
        assert_eq!(met, [Some(true), Some(false), Some(false)]);
    }

    #[test]
    fn a_job_of_the_sweep_with_a_target_is_judged_once() {
        let name = "read-128k-qd8-io_uring";
        let measured = results(&[
            (name, Column::Ringbar, &[30.0]),
            (name, Column::Nvme, &[10.0]),
        ]);
        let met: Vec<_> = evaluate(&measured, None)
            .iter()
            .map(|verdict| verdict.met)
            .collect();
        assert_eq!(met, [Some(false)]);
    }

    #[test]
    fn idleness_is_judged() {
        let idle = Idle::example(0.0, 0.5);
        let evaluated = evaluate(&results(&[]), Some(&idle));
        let met: Vec<_> = evaluated.iter().map(|verdict| verdict.met).collect();
        assert_eq!(met, [Some(true), Some(false)]);
    }
}
