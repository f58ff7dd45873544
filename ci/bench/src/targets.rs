// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The performance targets of Ringbar.

use serde::Serialize;

use crate::column::Column;
use crate::idle::Idle;
use crate::job::Job;
use crate::results::{Reference, Results};
use crate::statistics::round;
use crate::sweep::sweep;

/// A measured value of the column `ringbar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    /// Median of the ratios of transfers per second in the same round.
    Ratio(Reference),
    /// The least of the medians of the ratios to the peers that are polled.
    PolledRatio,
    /// Doorbells per transfer.
    Doorbells,
    /// Interrupts per transfer.
    Interrupts,
    /// Instructions per transfer relative to those of the best peer, polled or not.
    Instructions,
    /// Instructions of the driver's module per transfer.
    ModuleInstructions,
}

/// The bound that a value must meet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Bound {
    /// Lower bound.
    #[serde(rename = "at_least")]
    AtLeast(f64),
    /// Upper bound.
    #[serde(rename = "at_most")]
    AtMost(f64),
}

use Bound::{AtLeast, AtMost};
use Metric::{Doorbells, Instructions, Interrupts, ModuleInstructions, PolledRatio, Ratio};

/// Maximum number of CPUs that the idle guest may keep busy: its clock and the agent. A
/// CPU that polls counts as 1.
const IDLE_CPUS: f64 = 0.1;

/// Maximum number of instructions of the driver's module for a transfer of 4 KiB.
const MODULE_INSTRUCTIONS: f64 = 1500.0;

/// Maximum ratio of the cost of a byte in larger blocks to that in smaller ones.
const COST_TOLERANCE: f64 = 1.1;

/// The peers that are polled.
const POLLED: [Column; 2] = [Column::VirtioBlkPoll, Column::NvmePoll];

const BEST_PEER: Metric = Ratio(Reference::BestPeer);
const PLAIN: Metric = Ratio(Reference::Column(Column::RingbarPlain));
const INTERRUPT: Metric = Ratio(Reference::Column(Column::RingbarInterrupt));
const MEMCPY: Metric = Ratio(Reference::Column(Column::Memcpy));

/// The targets, in the order in which their jobs are run.
const TARGETS: &[(&str, Metric, Bound)] = &[
    ("randread-4k-qd32-io_uring", BEST_PEER, AtLeast(2.5)),
    ("randread-4k-qd32-io_uring", Doorbells, AtMost(0.5)),
    ("randread-4k-qd32-io_uring", Interrupts, AtMost(0.5)),
    ("randread-4k-qd32-io_uring", Instructions, AtMost(0.70)),
    (
        "randread-4k-qd32-io_uring",
        ModuleInstructions,
        AtMost(MODULE_INSTRUCTIONS),
    ),
    ("randwrite-4k-qd32-io_uring", BEST_PEER, AtLeast(2.5)),
    ("randwrite-4k-qd32-io_uring", Doorbells, AtMost(0.5)),
    ("randwrite-4k-qd32-io_uring", Interrupts, AtMost(0.5)),
    ("randwrite-4k-qd32-io_uring", Instructions, AtMost(0.70)),
    (
        "randwrite-4k-qd32-io_uring",
        ModuleInstructions,
        AtMost(MODULE_INSTRUCTIONS),
    ),
    ("randread-4k-qd32-libaio", BEST_PEER, AtLeast(2.5)),
    ("randread-4k-qd32-libaio", Doorbells, AtMost(0.5)),
    ("randread-4k-qd32-libaio", Interrupts, AtMost(0.5)),
    ("randread-4k-qd32-libaio", Instructions, AtMost(0.70)),
    ("randwrite-4k-qd32-libaio", BEST_PEER, AtLeast(2.5)),
    ("randwrite-4k-qd32-libaio", Doorbells, AtMost(0.5)),
    ("randwrite-4k-qd32-libaio", Interrupts, AtMost(0.5)),
    ("randwrite-4k-qd32-libaio", Instructions, AtMost(0.70)),
    ("randread-4k-qd1-io_uring", BEST_PEER, AtLeast(5.0)),
    (
        "randread-4k-qd1-io_uring",
        ModuleInstructions,
        AtMost(MODULE_INSTRUCTIONS),
    ),
    ("randread-4k-qd1-psync", BEST_PEER, AtLeast(5.0)),
    ("randread-4k-qd32-io_uring-batch8", BEST_PEER, AtLeast(2.0)),
    ("randread-4k-qd32-io_uring-batch8", Doorbells, AtMost(0.1)),
    ("randread-4k-qd32-io_uring-batch8", Interrupts, AtMost(0.1)),
    ("read-128k-qd8-io_uring", BEST_PEER, AtLeast(4.0)),
    ("read-128k-qd8-io_uring", Instructions, AtMost(0.75)),
    ("write-128k-qd8-io_uring", BEST_PEER, AtLeast(4.0)),
    ("write-128k-qd8-io_uring", Instructions, AtMost(0.75)),
    ("read-1m-qd4-io_uring", BEST_PEER, AtLeast(2.5)),
    ("read-1m-qd4-io_uring", MEMCPY, AtLeast(0.8)),
    ("read-1m-qd4-io_uring", Instructions, AtMost(0.75)),
    ("write-1m-qd4-io_uring", BEST_PEER, AtLeast(2.5)),
    ("write-1m-qd4-io_uring", MEMCPY, AtLeast(0.8)),
    ("write-1m-qd4-io_uring", Instructions, AtMost(0.75)),
    ("randread-4k-qd32-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("randwrite-4k-qd32-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("read-128k-qd8-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("write-128k-qd8-io_uring-fixed", PLAIN, AtLeast(1.2)),
    ("randread-4k-qd32-io_uring-iopoll", INTERRUPT, AtLeast(1.0)),
    (
        "randread-4k-qd32-io_uring-iopoll",
        PolledRatio,
        AtLeast(1.5),
    ),
    ("randread-4k-qd32-io_uring-iopoll", Interrupts, AtMost(0.0)),
    ("randwrite-4k-qd32-io_uring-iopoll", INTERRUPT, AtLeast(1.0)),
    (
        "randwrite-4k-qd32-io_uring-iopoll",
        PolledRatio,
        AtLeast(1.5),
    ),
    ("randwrite-4k-qd32-io_uring-iopoll", Interrupts, AtMost(0.0)),
    ("randread-4k-qd32-io_uring-j2", BEST_PEER, AtLeast(4.0)),
];

/// All jobs that have a target.
pub fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    // A test shows that every name is valid.
    for job in TARGETS.iter().filter_map(|(name, ..)| name.parse().ok()) {
        if !jobs.contains(&job) {
            jobs.push(job);
        }
    }
    jobs
}

/// A target and the measured value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetResult {
    /// Name of the job, `idle`, or another subject.
    pub job: String,
    /// Name of the measured value.
    pub metric: String,
    /// The bound.
    pub bound: Bound,
    /// The value; `None` if it was not measured, because devices were skipped.
    pub value: Option<f64>,
    /// Whether the value meets the bound; `None` without a value.
    pub met: Option<bool>,
}

impl TargetResult {
    fn new(job: &str, metric: &str, bound: Bound, value: Option<f64>) -> Self {
        // Rounded as printed, so that the printed value agrees with `met`.
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
            PolledRatio => "ratio to best polled peer".into(),
            Doorbells => "doorbells_per_io".into(),
            Interrupts => "interrupts_per_io".into(),
            Instructions => "instructions to best peer's".into(),
            ModuleInstructions => "module_instructions_per_io".into(),
        }
    }

    fn value(self, results: &Results, job: &str) -> Option<f64> {
        match self {
            Ratio(reference) => results.ratio(job, reference).map(|line| line.ratio),
            PolledRatio => POLLED
                .into_iter()
                .filter_map(|peer| results.ratio(job, Reference::Column(peer)))
                .map(|line| line.ratio)
                .min_by(f64::total_cmp),
            Doorbells => results.line(job, Column::Ringbar)?.doorbells_per_io,
            Interrupts => results.line(job, Column::Ringbar)?.interrupts_per_io,
            Instructions => results.instruction_ratio(job).map(|line| line.ratio),
            ModuleInstructions => {
                results
                    .line(job, Column::Ringbar)?
                    .module_instructions_per_io
            }
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

/// Evaluates the sweep: Ringbar is at no point slower than the best peer, and a byte
/// costs no more in larger blocks.
fn evaluate_sweep(results: &Results) -> Vec<TargetResult> {
    let mut evaluated = Vec::new();
    let measured: Vec<_> = sweep()
        .into_iter()
        .filter(|job| results.has_job(&job.to_string()))
        .collect();
    for name in measured.iter().map(Job::to_string) {
        // A job with a higher target of its own is skipped.
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
    // The best round of each size counts, because sizes are not measured at the same
    // time.
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
    use super::*;
    use crate::results::tests::{counted, results};

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
        assert_eq!(evaluated.len(), 3);
        assert_eq!(
            (evaluated[0].value, evaluated[0].met),
            (Some(3.0), Some(true))
        );
        assert_eq!((evaluated[1].value, evaluated[1].met), (None, None));
        assert_eq!((evaluated[2].value, evaluated[2].met), (None, None));
        let measured = results(&[
            (name, Column::Ringbar, &[700.0]),
            (name, Column::Memcpy, &[1000.0]),
        ]);
        assert_eq!(evaluate(&measured, None)[1].met, Some(false));
    }

    #[test]
    fn the_faster_of_the_polled_peers_counts() {
        const JOB: &str = "randread-4k-qd32-io_uring-iopoll";
        let value = |lines: &[(&'static str, Column, &'static [f64])]| {
            let targets = evaluate(&results(lines), None);
            let target = targets
                .iter()
                .find(|target| target.metric == "ratio to best polled peer")
                .unwrap();
            (target.value, target.met)
        };
        let ours: (&str, Column, &[f64]) = (JOB, Column::Ringbar, &[3000.0]);
        let slow: (&str, Column, &[f64]) = (JOB, Column::NvmePoll, &[1000.0]);
        let fast: (&str, Column, &[f64]) = (JOB, Column::VirtioBlkPoll, &[2500.0]);
        assert_eq!(value(&[ours, slow]), (Some(3.0), Some(true)));
        assert_eq!(value(&[ours, slow, fast]), (Some(1.2), Some(false)));
        assert_eq!(value(&[ours]), (None, None));
    }

    #[test]
    fn few_instructions_meet_a_target() {
        let name = "randread-4k-qd32-io_uring";
        for (ours, met) in [(7000.0, true), (7100.0, false)] {
            let mut measured = results(&[
                (name, Column::Ringbar, &[1.0]),
                (name, Column::VirtioBlk, &[1.0]),
            ]);
            let job = name.parse().unwrap();
            measured.add_instructions(job, Column::Ringbar, &[counted(ours, None)]);
            measured.add_instructions(job, Column::VirtioBlk, &[counted(10_000.0, None)]);
            let evaluated = evaluate(&measured, None);
            let metric = Instructions.name();
            let target = evaluated.iter().find(|target| target.metric == metric);
            assert_eq!(target.unwrap().met, Some(met));
        }
    }

    #[test]
    fn the_module_has_a_target_of_its_own() {
        for name in [
            "randread-4k-qd32-io_uring",
            "randwrite-4k-qd32-io_uring",
            "randread-4k-qd1-io_uring",
        ] {
            for (module, met) in [
                (Some(1500.0), Some(true)),
                (Some(1501.0), Some(false)),
                (None, None),
            ] {
                let mut measured = results(&[(name, Column::Ringbar, &[1.0])]);
                let job = name.parse().unwrap();
                measured.add_instructions(job, Column::Ringbar, &[counted(9000.0, module)]);
                let evaluated = evaluate(&measured, None);
                let metric = ModuleInstructions.name();
                let target = evaluated.iter().find(|target| target.metric == metric);
                let target = target.unwrap();
                assert_eq!((target.value, target.met), (module, met), "{name}");
            }
        }
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
        assert_eq!(met, [Some(false), None]);
    }

    #[test]
    fn idleness_is_judged() {
        let idle = Idle::example(0.0, 0.5);
        let evaluated = evaluate(&results(&[]), Some(&idle));
        let met: Vec<_> = evaluated.iter().map(|verdict| verdict.met).collect();
        assert_eq!(met, [Some(true), Some(false)]);
    }
}
