// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio jobs that verify their data.

mod job;
mod jobs;

pub use job::Job;
pub use jobs::JOBS;
use ringbar_bench::counters::Counters;
use ringbar_bench::fio;
use ringbar_fio::Outcome;
use ringbar_vm::agent::Agent;
use ringbar_vm::error::Result;

/// Runs a job. `before_reading` is called after the data of a reading job is written, and
/// never for a writing job.
pub fn run(
    job: &Job,
    agent: &Agent,
    before_reading: impl FnOnce() -> Result<()>,
) -> Result<Measurement> {
    if job.access.reads() {
        let layout = fio::run(agent, &job.layout(), &[], |_| {})?;
        if let Err(failure) = layout.result() {
            return Ok(Measurement::failed(format!(
                "writing what is to be read: {failure}"
            )));
        }
        before_reading()?;
    }
    let before = Counters::read(agent)?;
    let outcome = fio::run(agent, &job.fio(), &[], |_| {})?;
    let counted = Counters::read(agent)?.since(before);
    Ok(measure(job, &outcome, counted))
}

fn measure(job: &Job, outcome: &Outcome, counted: Counters) -> Measurement {
    let report = match outcome.result() {
        Ok(report) => report,
        Err(failure) => {
            let failed = Measurement::failed(failure);
            return match outcome.report() {
                None => failed,
                Some(report) => Measurement {
                    verified_bytes: report
                        .read
                        .io_bytes
                        .saturating_sub(report.total_err.saturating_mul(job.block)),
                    verify_errors: report.verify_errors(),
                    ..failed
                },
            };
        }
    };
    // A writing job reads only to verify its writes.
    let expected = job.whole_blocks();
    let verified = report.read.io_bytes;
    let iops = if job.access.reads() {
        report.read.iops
    } else {
        report.write.iops
    };
    let ios = (report.read.total_ios + report.write.total_ios).max(1) as f64;
    let failure = (verified != expected)
        .then(|| format!("fio verified {verified} bytes instead of {expected}"));
    Measurement {
        iops,
        verified_bytes: verified,
        verify_errors: 0,
        interrupts_per_io: counted.interrupts as f64 / ios,
        doorbells_per_io: counted.doorbells as f64 / ios,
        failure,
    }
}

/// Result of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Transfers per second in the job's own direction.
    pub iops: f64,
    /// Bytes that fio verified.
    pub verified_bytes: u64,
    /// Blocks that failed verification.
    pub verify_errors: u64,
    /// Interrupts per transfer, including verification.
    pub interrupts_per_io: f64,
    /// Doorbells per transfer, including verification.
    pub doorbells_per_io: f64,
    /// The reason for failure; `None` if the job passed.
    pub failure: Option<String>,
}

impl Measurement {
    fn failed(failure: String) -> Self {
        Self {
            iops: 0.0,
            verified_bytes: 0,
            verify_errors: 0,
            interrupts_per_io: 0.0,
            doorbells_per_io: 0.0,
            failure: Some(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbar_fio::{Access, Engine};
    use std::collections::HashSet;

    fn outcome(error: i32, total_err: u64, read: u64, write: u64) -> Outcome {
        let report = format!(
            r#"{{"jobs": [{{"error": {error}, "total_err": {total_err},
            "read": {{"io_bytes": {read}, "total_ios": {}, "iops": 10.5}},
            "write": {{"io_bytes": {write}, "total_ios": {}, "iops": 20.5}}}}]}}"#,
            read / 4096,
            write / 4096
        );
        Outcome::new(0, String::new(), Ok(report))
    }

    const COUNTED: Counters = Counters {
        interrupts: 512,
        doorbells: 1024,
    };

    #[test]
    fn a_job_is_measured_in_its_own_direction() {
        let job = Job::new(Engine::Libaio, Access::RandWrite, 4096, 32, 4 << 20);
        let m = measure(&job, &outcome(0, 0, 4 << 20, 4 << 20), COUNTED);
        assert_eq!(m.failure, None);
        assert_eq!(m.verified_bytes, 4 << 20);
        assert_eq!(m.iops, 20.5);
        assert_eq!(m.interrupts_per_io, 0.25);
        assert_eq!(m.doorbells_per_io, 0.5);

        let job = Job::new(Engine::Libaio, Access::Read, 4096, 32, 4 << 20);
        let m = measure(&job, &outcome(0, 0, 4 << 20, 0), COUNTED);
        assert_eq!(m.iops, 10.5);
    }

    #[test]
    fn wrong_bytes_fail_a_job_although_fio_exits_with_0() {
        let job = Job::new(Engine::IoUring, Access::RandRead, 4096, 32, 4 << 20);
        let m = measure(&job, &outcome(84, 1, 4 << 20, 0), COUNTED);
        assert_eq!(m.verify_errors, 1);
        assert_eq!(m.verified_bytes, (4 << 20) - 4096);
        let failure = m.failure.unwrap();
        assert!(failure.contains("failed verification: 1"), "{failure}");
    }

    #[test]
    fn less_verified_than_asked_for_fails_a_job() {
        let job = Job::new(Engine::IoUring, Access::RandRead, 4096, 32, 4 << 20);
        let m = measure(&job, &outcome(0, 0, 1 << 20, 0), COUNTED);
        assert!(m.failure.unwrap().contains("instead of 4194304"));
    }

    #[test]
    fn other_errors_and_missing_reports_fail_a_job() {
        let job = Job::new(Engine::Psync, Access::Write, 4096, 1, 4 << 20);
        let m = measure(&job, &outcome(5, 0, 0, 0), COUNTED);
        assert!(m.failure.unwrap().contains("error 5"));
        let missing = Outcome::new(127, String::new(), Err("no such file".into()));
        let m = measure(&job, &missing, COUNTED);
        assert!(m.failure.unwrap().contains("no report"));
    }

    #[test]
    fn the_jobs_cover_what_was_promised() {
        let names: HashSet<_> = JOBS.iter().map(Job::to_string).collect();
        assert_eq!(names.len(), JOBS.len(), "a name comes twice");
        assert!(names.contains("randread-4k-qd32-io_uring-fixed"));
        assert!(names.contains("randread-4k-qd32-libaio-userreap"));
        for engine in ["psync", "libaio", "io_uring"] {
            let of = |f: &dyn Fn(&Job) -> bool| {
                JOBS.iter().any(|job| job.engine.name() == engine && f(job))
            };
            for access in [
                Access::Read,
                Access::Write,
                Access::RandRead,
                Access::RandWrite,
            ] {
                assert!(of(&|job| job.access == access), "{engine} {access:?}");
            }
            assert!(of(&|job| job.skew % 2 == 1), "{engine} unaligned");
            assert!(of(&|job| job.depth == 1), "{engine} depth 1");
            for block in [512, 4096, 65536, 1 << 20] {
                assert!(of(&|job| job.block == block), "{engine} {block}");
            }
            if engine != "psync" {
                assert!(of(&|job| job.depth == 32), "{engine} depth 32");
            }
        }
        assert!(
            JOBS.iter()
                .all(|job| job.corruption_offset() < job.whole_blocks())
        );
    }
}
