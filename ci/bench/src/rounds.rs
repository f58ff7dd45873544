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

/// Runs a job on all columns that take part: once as a warm-up, then in rounds as
/// [`alternate`] does. `measure` gets the number of the round, 0 for the warm-up.
pub fn run(
    job: Job,
    columns: &[Column],
    schedule: Schedule,
    mut measure: impl FnMut(u32, Column, &Job, Duration) -> Result<Sample>,
) -> Result<JobSamples> {
    for (column, variant) in &variants(job, columns) {
        measure(0, *column, variant, schedule.warm_up)?;
    }
    let columns = alternate(job, columns, schedule.rounds, |round, column, job| {
        measure(round, column, job, schedule.time)
    })?;
    Ok(JobSamples { job, columns })
}

/// Runs a job in rounds on all columns that take part. Each round begins with another
/// column, so that no column always has the same position. `measure` gets the number of
/// the round, from 1 on, and the column's variant of the job. Returns the columns with
/// their values in the order of the rounds.
pub fn alternate<T>(
    job: Job,
    columns: &[Column],
    rounds: u32,
    mut measure: impl FnMut(u32, Column, &Job) -> Result<T>,
) -> Result<Vec<(Column, Vec<T>)>> {
    let variants = variants(job, columns);
    let mut values: Vec<_> = variants
        .iter()
        .map(|(column, _)| (*column, Vec::new()))
        .collect();
    for round in 1..=rounds {
        for place in 0..variants.len() {
            let i = (place + round as usize - 1) % variants.len();
            let (column, variant) = &variants[i];
            values[i].1.push(measure(round, *column, variant)?);
        }
    }
    Ok(values)
}

/// The columns that take part, with their variants of the job.
fn variants(job: Job, columns: &[Column]) -> Vec<(Column, Job)> {
    columns
        .iter()
        .filter_map(|column| Some((*column, column.variant(job)?)))
        .collect()
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
