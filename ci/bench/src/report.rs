// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The result, as written to `build/bench/result.json`.

use serde::Serialize;

use crate::column::Column;
use crate::idle::Idle;
use crate::instructions::NotCounted;
use crate::job::Job;
use crate::measure::Sample;
use crate::rounds::JobSamples;
use crate::statistics::{Summary, median_of_known, round};
use crate::targets::{Reference, TargetResult, evaluate};

/// The environment of the measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Environment {
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Version of QEMU.
    pub qemu: String,
    /// QEMU's accelerator.
    pub accel: String,
    /// CPUs of the host.
    pub host_cpus: usize,
    /// CPUs of the guest.
    pub guest_cpus: u32,
    /// Bytes of each device.
    pub device_size: u64,
    /// How QEMU and qemu-storage-daemon access the files of the peers.
    pub peer_access: String,
    /// Number of rounds.
    pub rounds: u32,
    /// Run time of each job on each device in each round, in seconds.
    pub seconds: f64,
    /// Reason for which instructions were not counted.
    pub instructions_not_counted: Option<NotCounted>,
}

/// One job on one device. Medians are over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobLine {
    /// Name of the job.
    pub job: String,
    /// Name of the column.
    pub device: Column,
    /// Median of transfers per second; for `memcpy`, of copies.
    pub iops_median: f64,
    /// Least.
    pub iops_min: f64,
    /// Greatest.
    pub iops_max: f64,
    /// The values of all rounds, in order.
    pub iops: Vec<f64>,
    /// Interrupts in the guest per transfer.
    pub interrupts_per_io: Option<f64>,
    /// Doorbells per transfer. Only Ringbar's driver counts them.
    pub doorbells_per_io: Option<f64>,
    /// CPU time of the device's own process per transfer. Devices within QEMU have none.
    pub daemon_cpu_us_per_io: Option<f64>,
    /// CPU time of QEMU per transfer. With TCG it includes the guest.
    pub qemu_cpu_us_per_io: Option<f64>,
    /// Instructions of the guest per transfer, counted in a run of its own.
    pub instructions_per_io: Option<f64>,
}

/// Ringbar's instructions per transfer relative to those of another column.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstructionRatio {
    /// Name of the job.
    pub job: String,
    /// The peer with the fewest instructions, polled or not.
    pub peer: Column,
    /// The ratio; less is better.
    pub ratio: f64,
}

/// Ringbar's ratio to another column.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RatioLine {
    /// Name of the job.
    pub job: String,
    /// `best_peer`, or the name of a column.
    pub vs: String,
    /// The column that `vs` stands for.
    pub peer: Column,
    /// Median of the ratios in the same round.
    pub ratio: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
}

/// `vs` of the ratio to the peer with the highest median.
pub const BEST_PEER: &str = "best_peer";

/// All measurements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    jobs: Vec<JobLine>,
    ratios: Vec<RatioLine>,
}

impl JobLine {
    fn new(job: Job, column: Column, samples: &[Sample]) -> Option<Self> {
        let iops: Vec<_> = samples.iter().map(|sample| round(sample.iops, 1)).collect();
        let summary = Summary::of(&iops)?;
        let median = |field: fn(&Sample) -> Option<f64>, digits| {
            let values: Vec<_> = samples.iter().map(field).collect();
            median_of_known(&values).map(|value| round(value, digits))
        };
        Some(Self {
            job: job.to_string(),
            device: column,
            iops_median: summary.median,
            iops_min: summary.min,
            iops_max: summary.max,
            iops,
            interrupts_per_io: median(|sample| sample.interrupts_per_io, 4),
            doorbells_per_io: median(|sample| sample.doorbells_per_io, 4),
            daemon_cpu_us_per_io: median(|sample| sample.daemon_cpu_us_per_io, 2),
            qemu_cpu_us_per_io: median(|sample| sample.qemu_cpu_us_per_io, 2),
            instructions_per_io: None,
        })
    }
}

impl Results {
    /// Adds the samples of a job, and Ringbar's ratios to all other columns.
    pub fn add(&mut self, samples: &JobSamples) {
        let lines: Vec<_> = samples
            .columns
            .iter()
            .filter_map(|(column, values)| JobLine::new(samples.job, *column, values))
            .collect();
        let best = Column::PEERS
            .into_iter()
            .filter_map(|peer| lines.iter().find(|line| line.device == peer))
            .max_by(|a, b| a.iops_median.total_cmp(&b.iops_median))
            .map(|line| (BEST_PEER.to_owned(), line));
        let ours = lines.iter().find(|line| line.device == Column::Ringbar);
        let others = lines
            .iter()
            .filter(|line| line.device != Column::Ringbar)
            .map(|line| (line.device.to_string(), line));
        let ratios = best.into_iter().chain(others).filter_map(|(vs, theirs)| {
            let summary = Summary::of_ratios(&ours?.iops, &theirs.iops)?;
            Some(RatioLine {
                job: theirs.job.clone(),
                vs,
                peer: theirs.device,
                ratio: round(summary.median, 3),
                min: round(summary.min, 3),
                max: round(summary.max, 3),
            })
        });
        self.ratios.extend(ratios);
        self.jobs.extend(lines);
    }

    /// Adds the instructions for each transfer of a job that was measured before.
    pub fn add_instructions(&mut self, job: Job, column: Column, instructions_per_io: f64) {
        let job = job.to_string();
        let lines = self.jobs.iter_mut();
        for line in lines.filter(|line| line.job == job && line.device == column) {
            line.instructions_per_io = Some(round(instructions_per_io, 0));
        }
    }

    /// Ringbar's instructions relative to those of the best peer.
    pub fn instruction_ratio(&self, job: &str) -> Option<InstructionRatio> {
        let ours = self.line(job, Column::Ringbar)?.instructions_per_io?;
        let peers = self.jobs.iter().filter(|line| line.job == job);
        let (peer, theirs) = peers
            .filter(|line| line.device.is_peer())
            .filter_map(|line| Some((line.device, line.instructions_per_io?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))?;
        (theirs > 0.0).then(|| InstructionRatio {
            job: job.to_owned(),
            peer,
            ratio: round(ours / theirs, 3),
        })
    }

    /// All lines.
    pub fn lines(&self) -> &[JobLine] {
        &self.jobs
    }

    /// Names of the jobs, in the order in which they were run.
    pub fn job_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for line in &self.jobs {
            if names.last() != Some(&line.job.as_str()) {
                names.push(&line.job);
            }
        }
        names
    }

    /// Whether a job was run.
    pub fn has_job(&self, job: &str) -> bool {
        self.jobs.iter().any(|line| line.job == job)
    }

    /// The columns with measurements, in the order of the tables.
    pub fn columns(&self) -> Vec<Column> {
        let measured = |column: &Column| self.jobs.iter().any(|line| line.device == *column);
        Column::ALL.into_iter().filter(measured).collect()
    }

    /// The line of a job and a column.
    pub fn line(&self, job: &str, column: Column) -> Option<&JobLine> {
        self.jobs
            .iter()
            .find(|line| line.job == job && line.device == column)
    }

    /// Ringbar's ratio to a reference in a job.
    pub fn ratio(&self, job: &str, reference: Reference) -> Option<&RatioLine> {
        let vs = match reference {
            Reference::BestPeer => BEST_PEER,
            Reference::Column(column) => column.name(),
        };
        self.ratios
            .iter()
            .find(|line| line.job == job && line.vs == vs)
    }
}

/// The complete report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The environment of the measurement.
    pub environment: Environment,
    /// Names of the columns.
    pub devices: Vec<Column>,
    /// Description of each column.
    pub settings: std::collections::BTreeMap<Column, &'static str>,
    /// Each job on each device.
    pub jobs: Vec<JobLine>,
    /// Ringbar's ratios to the other columns.
    pub ratios: Vec<RatioLine>,
    /// Ringbar's instructions relative to those of the best peer.
    pub instruction_ratios: Vec<InstructionRatio>,
    /// The targets of the jobs that were run.
    pub targets: Vec<TargetResult>,
    /// The measurement of the idle devices.
    pub idle: Option<Idle>,
}

impl Report {
    /// Evaluates the results against the targets.
    pub fn new(environment: Environment, results: &Results, idle: Option<Idle>) -> Self {
        let devices = results.columns();
        Self {
            environment,
            settings: devices
                .iter()
                .map(|column| (*column, column.description()))
                .collect(),
            devices,
            jobs: results.jobs.clone(),
            ratios: results.ratios.clone(),
            instruction_ratios: results
                .job_names()
                .iter()
                .filter_map(|job| results.instruction_ratio(job))
                .collect(),
            targets: evaluate(results, idle.as_ref()),
            idle,
        }
    }

    /// Whether no measured target was missed.
    pub fn all_met(&self) -> bool {
        self.targets.iter().all(|target| target.met != Some(false))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Results of these transfers per second.
    pub(crate) fn results(measured: &[(&str, Column, &[f64])]) -> Results {
        let mut jobs: Vec<JobSamples> = Vec::new();
        for (name, column, iops) in measured {
            let job = name.parse().unwrap();
            let samples = iops
                .iter()
                .map(|iops| Sample {
                    iops: *iops,
                    interrupts_per_io: Some(0.25),
                    doorbells_per_io: column.is_ringbar().then_some(0.125),
                    ..Sample::default()
                })
                .collect();
            match jobs.iter_mut().find(|samples| samples.job == job) {
                Some(known) => known.columns.push((*column, samples)),
                None => jobs.push(JobSamples {
                    job,
                    columns: vec![(*column, samples)],
                }),
            }
        }
        let mut results = Results::default();
        for samples in &jobs {
            results.add(samples);
        }
        results
    }

    const JOB: &str = "randread-4k-qd32-io_uring";

    pub(crate) fn report() -> Report {
        let mut results = results(&[
            (JOB, Column::Ringbar, &[500.0, 1200.0, 800.0]),
            (JOB, Column::VirtioBlk, &[100.0, 400.0, 200.0]),
            (JOB, Column::Nvme, &[90.0, 300.0, 210.0]),
            (JOB, Column::NvmePoll, &[1000.0, 2400.0, 1600.0]),
            (JOB, Column::Floor, &[5000.0, 5000.0, 5000.0]),
        ]);
        let job = JOB.parse().unwrap();
        for (column, instructions) in [
            (Column::Ringbar, 7200.4),
            (Column::VirtioBlk, 11200.0),
            (Column::NvmePoll, 9600.0),
            (Column::Floor, 3800.0),
        ] {
            results.add_instructions(job, column, instructions);
        }
        let environment = Environment {
            kernel: "7.3.4".into(),
            qemu: "11.1.3".into(),
            accel: "tcg".into(),
            host_cpus: 2,
            guest_cpus: 2,
            device_size: 256 << 20,
            peer_access: "aio=native".into(),
            rounds: 3,
            seconds: 2.0,
            instructions_not_counted: None,
        };
        Report::new(environment, &results, Some(Idle::example(0.0, 0.0)))
    }

    #[test]
    fn the_best_peer_has_the_highest_median_and_is_not_polled() {
        let report = report();
        let best = &report.ratios[0];
        assert_eq!((best.vs.as_str(), best.peer), (BEST_PEER, Column::Nvme));
        // 500 / 90, 1200 / 300, 800 / 210
        assert_eq!((best.min, best.ratio, best.max), (3.81, 4.0, 5.556));
        let poll = report.ratios.iter().find(|line| line.vs == "nvme-poll");
        assert_eq!(poll.unwrap().ratio, 0.5);
        assert!(!report.all_met());
    }

    #[test]
    fn instructions_are_compared_with_the_fewest_of_all_peers() {
        let report = report();
        let [ratio] = &report.instruction_ratios[..] else {
            panic!("{:?}", report.instruction_ratios);
        };
        assert_eq!((ratio.peer, ratio.ratio), (Column::NvmePoll, 0.75));
        let mut none = results(&[(JOB, Column::Ringbar, &[1.0])]);
        assert_eq!(none.instruction_ratio(JOB), None);
        none.add_instructions(JOB.parse().unwrap(), Column::Ringbar, 7000.0);
        assert_eq!(none.instruction_ratio(JOB), None);
    }

    #[test]
    fn the_json_has_the_promised_names() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(
            json["devices"],
            serde_json::json!(["ringbar", "virtio-blk", "nvme", "nvme-poll", "floor"])
        );
        let line = &json["jobs"][0];
        assert_eq!(line["job"], JOB);
        assert_eq!(line["device"], "ringbar");
        assert_eq!(line["iops_median"], 800.0);
        assert_eq!(line["iops_min"], 500.0);
        assert_eq!(line["iops_max"], 1200.0);
        assert_eq!(line["interrupts_per_io"], 0.25);
        assert_eq!(line["doorbells_per_io"], 0.125);
        // The field is there, and null for an unknown value.
        assert!(
            line.as_object()
                .unwrap()
                .contains_key("daemon_cpu_us_per_io")
        );
        assert!(line.as_object().unwrap().contains_key("qemu_cpu_us_per_io"));
        assert!(json["jobs"][1]["doorbells_per_io"].is_null());
        assert_eq!(line["instructions_per_io"], 7200.0);
        assert!(json["jobs"][2]["instructions_per_io"].is_null());
        assert_eq!(json["instruction_ratios"][0]["peer"], "nvme-poll");
        assert_eq!(json["instruction_ratios"][0]["ratio"], 0.75);
        assert!(json["environment"]["instructions_not_counted"].is_null());
        let ratio = &json["ratios"][0];
        assert_eq!(ratio["job"], JOB);
        assert_eq!(ratio["vs"], "best_peer");
        assert_eq!(ratio["peer"], "nvme");
        assert_eq!(ratio["ratio"], 4.0);
        assert_eq!(ratio["min"], 3.81);
        assert_eq!(ratio["max"], 5.556);
        let target = &json["targets"][0];
        assert_eq!(target["bound"]["at_least"], 5.0);
        assert_eq!(target["met"], false);
        assert_eq!(
            json["idle"]["daemons"]["ringbar"]["wakeups_per_second"],
            0.0
        );
        assert_eq!(json["environment"]["accel"], "tcg");
        assert!(json["settings"]["nvme"].is_string());
    }
}
