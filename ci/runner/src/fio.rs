// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio jobs that verify their data.

mod jobs;

use std::fmt;

pub use jobs::JOBS;
use ringbar_bench::counters::Counters;
use ringbar_bench::fio::{Access, Engine, FioRun, block_name, run};
use ringbar_vm::agent::Agent;
use ringbar_vm::error::Result;
use ringbar_vm::vm::DEVICE_NODE;

/// One fio job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Engine.
    pub engine: Engine,
    /// Direction and order.
    pub access: Access,
    /// Size of each transfer.
    pub block: u64,
    /// Transfers in flight.
    pub depth: u32,
    /// Bytes to transfer in all.
    pub size: u64,
    /// Offset of the first block in the device, and of the buffers in their page, in
    /// bytes. It is odd for unaligned jobs.
    pub skew: u64,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}-qd{}-{}",
            self.access.name(),
            block_name(self.block),
            self.depth,
            self.engine.name()
        )?;
        f.write_str(self.engine.suffix())?;
        if self.skew != 0 {
            f.write_str("-unaligned")?;
        }
        Ok(())
    }
}

/// Purpose of a run of fio.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Write the data that a reading job will verify.
    Layout,
    /// The job itself, with verification.
    Job,
}

impl Job {
    /// Offset in the device of a byte that the job reads, in the middle of a block's
    /// data.
    pub fn corruption_offset(&self) -> u64 {
        self.skew + self.block + self.block / 2
    }

    fn arguments(&self, phase: Phase) -> Vec<String> {
        let (engine, access, depth) = match phase {
            Phase::Job => (self.engine, self.access, self.depth),
            Phase::Layout => (Engine::Libaio, Access::Write, 32),
        };
        let mut arguments = vec![
            format!("--name={self}"),
            format!("--filename={DEVICE_NODE}"),
            format!("--ioengine={}", engine.name()),
            format!("--rw={}", access.name()),
            format!("--bs={}", self.block),
            format!("--iodepth={depth}"),
            format!("--size={}", self.size),
            format!("--offset={}", self.skew),
            "--direct=1".into(),
            "--randrepeat=1".into(),
            "--verify=crc32c".into(),
            // The job counts all errors, so the first one does not end it.
            "--verify_fatal=0".into(),
            "--continue_on_error=verify".into(),
            format!("--do_verify={}", u8::from(phase == Phase::Job)),
        ];
        if self.skew != 0 {
            arguments.push("--bs_unaligned=1".into());
            // fio adds this to the page-aligned start of its buffers.
            arguments.push(format!("--mem_align={}", self.skew));
        }
        arguments.extend(engine.options().iter().copied().map(str::to_owned));
        arguments
    }

    /// Bytes of all whole blocks.
    fn whole_blocks(&self) -> u64 {
        self.size / self.block * self.block
    }

    /// Runs the job. `before_reading` is called after the data of a reading job is
    /// written, and never for a writing job.
    pub fn run(
        &self,
        agent: &Agent,
        before_reading: impl FnOnce() -> Result<()>,
    ) -> Result<Measurement> {
        if self.access.reads() {
            let layout = self.fio(agent, Phase::Layout)?;
            if let Some(failure) = layout.failure() {
                return Ok(Measurement::failed(format!(
                    "writing what is to be read: {failure}"
                )));
            }
            before_reading()?;
        }
        let before = Counters::read(agent)?;
        let run = self.fio(agent, Phase::Job)?;
        let counted = Counters::read(agent)?.since(before);
        Ok(self.measure(&run, counted))
    }

    fn fio(&self, agent: &Agent, phase: Phase) -> Result<FioRun> {
        run(agent, self.arguments(phase), &[], |_| {})
    }

    fn measure(&self, run: &FioRun, counted: Counters) -> Measurement {
        let report = match (&run.report, run.failure()) {
            (Ok(report), None) => report,
            (Ok(report), Some(failure)) => {
                return Measurement {
                    verified_bytes: report
                        .read
                        .io_bytes
                        .saturating_sub(report.total_err.saturating_mul(self.block)),
                    verify_errors: report.verify_errors(),
                    ..Measurement::failed(failure)
                };
            }
            (Err(_), failure) => {
                return Measurement::failed(failure.unwrap_or_else(|| "no report".into()));
            }
        };
        // A writing job reads only to verify its writes.
        let expected = self.whole_blocks();
        let verified = report.read.io_bytes;
        let iops = if self.access.reads() {
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
    use super::jobs::{M, job, skewed};
    use super::*;
    use ringbar_bench::fio::parse_report;
    use std::collections::HashSet;

    fn report(error: i32, total_err: u64, read: u64, write: u64) -> String {
        format!(
            r#"{{"fio version": "fio-3.39", "jobs": [{{"jobname": "x", "error": {error},
            "total_err": {total_err}, "eta": 0,
            "read": {{"io_bytes": {read}, "total_ios": {}, "iops": 10.5, "bw": 1}},
            "write": {{"io_bytes": {write}, "total_ios": {}, "iops": 20.5, "bw": 1}}}}]}}"#,
            read / 4096,
            write / 4096
        )
    }

    fn run(text: &str, exit: i32) -> FioRun {
        FioRun {
            exit,
            messages: "crc32c: verify failed at file /dev/ringbar0 offset 98304\n".into(),
            report: parse_report(text),
        }
    }

    const COUNTED: Counters = Counters {
        interrupts: 512,
        doorbells: 1024,
    };

    #[test]
    fn a_job_is_measured_in_its_own_direction() {
        let job = job(Engine::Libaio, Access::RandWrite, 4096, 32, 4 << 20);
        let text = report(0, 0, 4 << 20, 4 << 20);
        let m = job.measure(&run(&text, 0), COUNTED);
        assert_eq!(m.failure, None);
        assert_eq!(m.verified_bytes, 4 << 20);
        assert_eq!(m.iops, 20.5);
        assert_eq!(m.interrupts_per_io, 0.25);
        assert_eq!(m.doorbells_per_io, 0.5);

        let job = super::jobs::job(Engine::Libaio, Access::Read, 4096, 32, 4 << 20);
        let m = job.measure(&run(&report(0, 0, 4 << 20, 0), 0), COUNTED);
        assert_eq!(m.iops, 10.5);
    }

    #[test]
    fn wrong_bytes_fail_a_job_although_fio_exits_with_0() {
        let job = job(Engine::IoUring, Access::RandRead, 4096, 32, 4 << 20);
        let m = job.measure(&run(&report(84, 1, 4 << 20, 0), 0), COUNTED);
        assert_eq!(m.verify_errors, 1);
        assert_eq!(m.verified_bytes, (4 << 20) - 4096);
        let failure = m.failure.unwrap();
        assert!(failure.contains("failed verification: 1"), "{failure}");
        assert!(failure.contains("offset 98304"), "{failure}");
    }

    #[test]
    fn less_verified_than_asked_for_fails_a_job() {
        let job = job(Engine::IoUring, Access::RandRead, 4096, 32, 4 << 20);
        let m = job.measure(&run(&report(0, 0, 1 << 20, 0), 0), COUNTED);
        assert!(m.failure.unwrap().contains("instead of 4194304"));
    }

    #[test]
    fn other_errors_and_missing_reports_fail_a_job() {
        let job = job(Engine::Psync, Access::Write, 4096, 1, 4 << 20);
        let m = job.measure(&run(&report(5, 0, 0, 0), 1), COUNTED);
        assert!(m.failure.unwrap().contains("error 5"));
        let m = job.measure(&run("fio: not found", 127), COUNTED);
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

    #[test]
    fn a_layout_is_written_without_verification() {
        let job = skewed(job(Engine::IoUringFixed, Access::RandRead, 4097, 8, M), 3);
        let line = job.arguments(Phase::Layout).join(" ");
        assert!(
            line.contains("--rw=write") && line.contains("--do_verify=0"),
            "{line}"
        );
        assert!(
            line.contains("--offset=3") && !line.contains("fixedbufs"),
            "{line}"
        );
        let line = job.arguments(Phase::Job).join(" ");
        assert!(
            line.contains("--rw=randread") && line.contains("--do_verify=1"),
            "{line}"
        );
        assert!(
            line.contains("--mem_align=3") && line.contains("--fixedbufs=1"),
            "{line}"
        );
        let job = super::jobs::job(Engine::LibaioUserReap, Access::RandRead, 4096, 8, M);
        let line = job.arguments(Phase::Job).join(" ");
        assert!(
            line.contains("--ioengine=libaio") && line.contains("--userspace_reap"),
            "{line}"
        );
    }
}
