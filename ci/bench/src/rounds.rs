// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs a job on all devices in rounds.

use std::time::Duration;

use ringbar_vm::error::Result;

use crate::column::Column;
use crate::job::Job;
use crate::measure::Sample;

/// The samples of a job: for each column one sample of each round.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSamples {
    /// The job.
    pub job: Job,
    /// Columns with their samples, in the order of the rounds.
    pub columns: Vec<(Column, Vec<Sample>)>,
}

/// Number and length of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Number of rounds that count.
    pub rounds: u32,
    /// Run time of a job in each round.
    pub time: Duration,
    /// Run time of the warm-up, which does not count.
    pub warm_up: Duration,
}

/// Runs a job on all columns that take part: once as a warm-up, then in rounds. Each
/// round begins with another column, so that no column always has the same position.
/// `measure` gets the number of the round, 0 for the warm-up.
pub fn run(
    job: Job,
    columns: &[Column],
    schedule: Schedule,
    mut measure: impl FnMut(u32, Column, &Job, Duration) -> Result<Sample>,
) -> Result<JobSamples> {
    let variants: Vec<_> = columns
        .iter()
        .filter_map(|column| Some((*column, column.variant(job)?)))
        .collect();
    let mut samples = vec![Vec::new(); variants.len()];
    for (column, variant) in &variants {
        measure(0, *column, variant, schedule.warm_up)?;
    }
    for round in 1..=schedule.rounds {
        for place in 0..variants.len() {
            let i = (place + round as usize - 1) % variants.len();
            let (column, variant) = &variants[i];
            samples[i].push(measure(round, *column, variant, schedule.time)?);
        }
    }
    let columns = variants.iter().map(|(column, _)| *column).zip(samples);
    Ok(JobSamples {
        job,
        columns: columns.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        rounds: 3,
        time: Duration::from_secs(2),
        warm_up: Duration::from_millis(300),
    };

    #[test]
    fn every_round_has_all_columns_and_begins_with_another() {
        let mut order = Vec::new();
        let columns = [
            Column::Ringbar,
            Column::RingbarPlain,
            Column::VirtioBlk,
            Column::Nvme,
        ];
        let job = "randread-4k-qd32-libaio".parse().unwrap();
        let samples = run(job, &columns, SCHEDULE, |round, column, _, time| {
            order.push((round, column, time.as_millis()));
            Ok(Sample {
                iops: f64::from(round) * 10.0 + f64::from(column == Column::Nvme),
                ..Sample::default()
            })
        })
        .unwrap();
        let (a, b, c) = (Column::Ringbar, Column::VirtioBlk, Column::Nvme);
        let expected = [
            (0, [a, b, c], 300),
            (1, [a, b, c], 2000),
            (2, [b, c, a], 2000),
            (3, [c, a, b], 2000),
        ]
        .into_iter()
        .flat_map(|(round, columns, time)| columns.map(|column| (round, column, time)));
        assert_eq!(order, expected.collect::<Vec<_>>());
        // The samples are in the order of the rounds, without the warm-up.
        let (column, nvme) = &samples.columns[2];
        assert_eq!(*column, Column::Nvme);
        let iops: Vec<_> = nvme.iter().map(|sample| sample.iops).collect();
        assert_eq!(iops, [11.0, 21.0, 31.0]);
    }
}
