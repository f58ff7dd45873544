// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The measurements of all jobs, and Ringbar's ratios to the other columns.

use serde::Serialize;

use crate::column::Column;
use crate::instructions::PerTransfer;
use crate::job::Job;
use crate::measure::Sample;
use crate::rounds::JobSamples;
use crate::statistics::{Summary, median_of_known, round};

/// The denominator of a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The peer with the highest median in this job.
    BestPeer,
    /// This column.
    Column(Column),
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
    /// System calls of the program per transfer. Only `ringbar-perf` counts them.
    pub system_calls_per_io: Option<f64>,
    /// CPU time of the device's own process per transfer. Devices within QEMU have none.
    pub daemon_cpu_us_per_io: Option<f64>,
    /// CPU time of QEMU per transfer. With TCG it includes the guest.
    pub qemu_cpu_us_per_io: Option<f64>,
    /// Instructions of the guest per transfer, counted in runs of their own.
    pub instructions_per_io: Option<f64>,
    /// The counts of which it is the median.
    pub instructions: Option<Counts>,
    /// Instructions of the driver's module per transfer, a part of those of the guest. Only
    /// Ringbar's columns have them.
    pub module_instructions_per_io: Option<f64>,
    /// The counts of which it is the median.
    pub module_instructions: Option<Counts>,
}

/// Repeated counts per transfer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counts {
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// The counts of all rounds that showed something, in order.
    pub values: Vec<f64>,
}

impl Counts {
    /// The median of the known values, and the values; `None` for both if none is known.
    fn summarize(values: impl Iterator<Item = Option<f64>>) -> (Option<f64>, Option<Self>) {
        let values: Vec<_> = values.flatten().map(|value| round(value, 0)).collect();
        let Some(Summary { median, min, max }) = Summary::of(&values) else {
            return (None, None);
        };
        (Some(round(median, 0)), Some(Self { min, max, values }))
    }
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
            system_calls_per_io: median(|sample| sample.system_calls_per_io, 4),
            daemon_cpu_us_per_io: median(|sample| sample.daemon_cpu_us_per_io, 2),
            qemu_cpu_us_per_io: median(|sample| sample.qemu_cpu_us_per_io, 2),
            instructions_per_io: None,
            instructions: None,
            module_instructions_per_io: None,
            module_instructions: None,
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

    /// Adds the instructions for each transfer of a job that was measured before, counted
    /// in several rounds; `None` for a round whose counts showed nothing.
    pub fn add_instructions(&mut self, job: Job, column: Column, rounds: &[Option<PerTransfer>]) {
        let rounds = rounds.iter().copied();
        let (all_median, all) = Counts::summarize(rounds.clone().map(|count| Some(count?.all)));
        let (module_median, module) = Counts::summarize(rounds.map(|count| count?.module));
        let job = job.to_string();
        let lines = self.jobs.iter_mut();
        for line in lines.filter(|line| line.job == job && line.device == column) {
            line.instructions_per_io = all_median;
            line.instructions.clone_from(&all);
            line.module_instructions_per_io = module_median;
            line.module_instructions.clone_from(&module);
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

    /// All ratios.
    pub fn ratios(&self) -> &[RatioLine] {
        &self.ratios
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A count of the whole guest and of the driver's module.
    pub(crate) fn counted(all: f64, module: Option<f64>) -> Option<PerTransfer> {
        Some(PerTransfer { all, module })
    }

    #[test]
    fn instructions_are_the_median_of_what_is_known() {
        let name = "randread-4k-qd32-io_uring";
        let mut results = results(&[
            (name, Column::Ringbar, &[1.0]),
            (name, Column::Nvme, &[1.0]),
        ]);
        let rounds = [
            counted(9000.4, Some(1300.0)),
            None,
            counted(7000.0, Some(1500.0)),
            counted(8000.0, None),
        ];
        results.add_instructions(name.parse().unwrap(), Column::Ringbar, &rounds);
        let line = results.line(name, Column::Ringbar).unwrap();
        assert_eq!(line.instructions_per_io, Some(8000.0));
        let expected = |min, max, values: &[f64]| {
            let values = values.to_vec();
            Some(Counts { min, max, values })
        };
        assert_eq!(
            line.instructions,
            expected(7000.0, 9000.0, &[9000.0, 7000.0, 8000.0])
        );
        assert_eq!(line.module_instructions_per_io, Some(1400.0));
        assert_eq!(
            line.module_instructions,
            expected(1300.0, 1500.0, &[1300.0, 1500.0])
        );
        // Neither another column nor rounds without a count get a value.
        results.add_instructions(name.parse().unwrap(), Column::Nvme, &[None]);
        let line = results.line(name, Column::Nvme).unwrap();
        assert_eq!(
            (line.instructions_per_io, &line.instructions),
            (None, &None)
        );
    }

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
}
