// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Selects the jobs to run.

use crate::column::Column;
use crate::job::{Job, JobError};
use crate::sweep::sweep;
use crate::targets;

/// Name of the list of jobs that have targets.
pub const TARGETS: &str = "targets";

/// Name of the list that covers sizes, depths and numbers of jobs.
pub const SWEEP: &str = "sweep";

/// Name of the list of jobs that `ringbar-perf` runs.
pub const LEAN: &str = "lean";

/// Those jobs: each way of doing I/O with 4 KiB, as a queue in user space is compared with.
const LEAN_JOBS: [&str; 6] = [
    "randread-4k-qd32-io_uring-fixed-batch32-lean",
    "randread-4k-qd32-io_uring-fixed-iopoll-batch32-lean",
    "randread-4k-qd32-io_uring-fixed-lean",
    "randread-4k-qd32-libaio-batch32-lean",
    "randread-4k-qd1-io_uring-fixed-lean",
    "randread-4k-qd1-psync-lean",
];

/// The jobs and columns to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The jobs, without duplicates.
    pub jobs: Vec<Job>,
    /// The columns. A job skips columns that cannot run it.
    pub columns: Vec<Column>,
}

/// Parses a comma-separated list of jobs and names of lists. If the list is only the
/// sweep, the columns are Ringbar and the peers, because the sweep is long.
pub fn select(list: &str) -> Result<Selection, JobError> {
    let mut jobs = Vec::new();
    let mut columns = vec![Column::Ringbar];
    columns.extend(Column::PEERS);
    for name in list.split(',').map(str::trim) {
        let more = match name {
            SWEEP => sweep(),
            TARGETS => targets::jobs(),
            LEAN => LEAN_JOBS
                .iter()
                .map(|name| name.parse())
                .collect::<Result<_, _>>()?,
            name => vec![name.parse()?],
        };
        if name != SWEEP {
            columns = Column::ALL.to_vec();
        }
        for job in more {
            if !jobs.contains(&job) {
                jobs.push(job);
            }
        }
    }
    Ok(Selection { jobs, columns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn jobs_and_lists_are_selected_once() {
        let name = "randread-4k-qd32-io_uring";
        let one = select(name).unwrap();
        assert_eq!(
            one.jobs.iter().map(Job::to_string).collect::<Vec<_>>(),
            [name]
        );
        assert_eq!(one.columns, Column::ALL);
        let both = select(&format!("{name}, targets,{name}")).unwrap();
        assert_eq!(both.jobs.len(), targets::jobs().len());
        let error = select("randread-4k-qd32-io_uring,fast").unwrap_err();
        assert!(error.to_string().contains("\"fast\" is no job"), "{error}");
        assert!(select("").is_err());
    }

    #[test]
    fn the_lean_jobs_are_run_by_another_program() {
        let selection = select(LEAN).unwrap();
        assert_eq!(selection.jobs.len(), LEAN_JOBS.len());
        assert!(selection.jobs.iter().all(|job| job.lean));
        assert_eq!(selection.columns, Column::ALL);
        assert!(targets::jobs().iter().all(|job| !job.lean));
    }

    #[test]
    fn the_sweep_goes_from_end_to_end() {
        let selection = select(SWEEP).unwrap();
        assert_eq!(selection.columns.len(), 4);
        let jobs = selection.jobs;
        assert_eq!(jobs.iter().collect::<HashSet<_>>().len(), jobs.len());
        let has = |f: &dyn Fn(&Job) -> bool| jobs.iter().any(f);
        assert!(has(&|job| job.block == 512) && has(&|job| job.block == 16 << 20));
        assert!(has(&|job| job.depth == 1) && has(&|job| job.depth == 256));
        assert!(has(&|job| job.jobs == 4));
        for job in &jobs {
            assert_eq!(job.to_string().parse(), Ok(*job));
        }
    }
}
