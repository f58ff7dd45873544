// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A job and its arguments.

use std::time::Duration;

use crate::REPORT;
use crate::kinds::{Access, Engine};

/// A block size as written in names: `512`, `4k`, `1m`.
pub fn block_name(bytes: u64) -> String {
    ringbar_size::format(bytes).to_lowercase()
}

/// The start of a job's name, which says what is done: `randread-4k-qd32-io_uring-fixed`.
pub fn name(access: Access, block: u64, depth: u32, engine: Engine) -> String {
    let (block, access) = (block_name(block), access.name());
    format!(
        "{access}-{block}-qd{depth}-{}{}",
        engine.name(),
        engine.suffix()
    )
}

/// How long a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Once over all its bytes.
    Once,
    /// For this time.
    Time(Duration),
    /// For this number of transfers, all processes together.
    Transfers(u64),
}

/// What fio does to verify data, by a CRC-32C in each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Nothing.
    None,
    /// It writes the data for a job that reads and verifies it.
    Layout,
    /// It verifies all blocks that it reads or has written, and counts the wrong ones.
    All,
    /// The same, and a writing job verifies whenever it has written this number of blocks.
    Backlog(u32),
}

/// One run of fio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Name of the job.
    pub name: String,
    /// File or device.
    pub file: String,
    /// I/O engine.
    pub engine: Engine,
    /// Direction and order.
    pub access: Access,
    /// Bytes of each transfer.
    pub block: u64,
    /// Transfers in flight per process.
    pub depth: u32,
    /// Number of concurrent processes.
    pub processes: u32,
    /// Bytes of the file that each process uses.
    pub size: u64,
    /// Offset in bytes of the first block in the file, and of the buffers in their page.
    pub skew: u64,
    /// Whether the page cache is bypassed.
    pub direct: bool,
    /// Whether completions are polled for (`hipri`, `IORING_SETUP_IOPOLL`).
    pub polled: bool,
    /// Number of transfers that are submitted, and waited for, together.
    pub batch: Option<u32>,
    /// How long the job runs.
    pub extent: Extent,
    /// Verification of the data.
    pub verification: Verification,
    /// Whether fio's own work is switched off: time stamps of each transfer, a map of the
    /// blocks done, fresh data for each block.
    pub bare: bool,
    /// Further arguments.
    pub further: Vec<String>,
}

impl Job {
    /// A job that runs once over `size` bytes, directly, with one transfer in flight, and
    /// verifies nothing.
    pub fn new(
        name: impl Into<String>,
        file: impl Into<String>,
        engine: Engine,
        size: u64,
    ) -> Self {
        Self {
            name: name.into(),
            file: file.into(),
            engine,
            access: Access::Write,
            block: 4096,
            depth: 1,
            processes: 1,
            size,
            skew: 0,
            direct: true,
            polled: false,
            batch: None,
            extent: Extent::Once,
            verification: Verification::None,
            bare: false,
            further: Vec::new(),
        }
    }

    /// fio's arguments. The report goes to [`REPORT`].
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--output-format=json".into(),
            format!("--output={REPORT}"),
            format!("--name={}", self.name),
            format!("--filename={}", self.file),
            format!("--ioengine={}", self.engine.name()),
            format!("--rw={}", self.access.name()),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
            format!("--numjobs={}", self.processes),
            format!("--size={}", self.size),
            format!("--direct={}", u8::from(self.direct)),
            // All processes are one job in the report.
            "--group_reporting".into(),
        ];
        let mut add = |options: &[&str]| {
            arguments.extend(options.iter().copied().map(str::to_owned));
        };
        if self.polled {
            add(&["--hipri=1"]);
        }
        if self.bare {
            add(&["--gtod_reduce=1", "--norandommap=1", "--scramble_buffers=0"]);
        }
        add(self.engine.options());
        match self.verification {
            Verification::None => {}
            Verification::Layout => add(&["--verify=crc32c", "--do_verify=0"]),
            Verification::All | Verification::Backlog(_) => add(&[
                "--verify=crc32c",
                "--do_verify=1",
                // The job counts all errors, so the first one does not end it.
                "--verify_fatal=0",
                "--continue_on_error=verify",
            ]),
        }
        if let Verification::Backlog(blocks) = self.verification {
            arguments.push(format!("--verify_backlog={blocks}"));
        }
        if self.skew != 0 {
            arguments.push(format!("--offset={}", self.skew));
            arguments.push("--bs_unaligned=1".into());
            // fio adds this to the page-aligned start of its buffers.
            arguments.push(format!("--mem_align={}", self.skew));
        }
        if let Some(batch) = self.batch {
            arguments.push(format!("--iodepth_batch_submit={batch}"));
            // Otherwise fio submits again when the first transfer ends.
            arguments.push(format!("--iodepth_batch_complete_min={batch}"));
        }
        match self.extent {
            Extent::Once => {}
            Extent::Time(time) => {
                arguments.push("--time_based".into());
                arguments.push(format!("--runtime={}ms", time.as_millis()));
            }
            Extent::Transfers(transfers) => {
                let each = transfers.div_ceil(u64::from(self.processes));
                arguments.push(format!("--io_size={}", each * self.block));
            }
        }
        arguments.extend_from_slice(&self.further);
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(job: &Job) -> String {
        format!(" {} ", job.arguments().join(" "))
    }

    fn expect(line: &str, present: &[&str], absent: &[&str]) {
        for argument in present {
            assert!(
                line.contains(&format!(" {argument} ")),
                "{argument} is not in {line}"
            );
        }
        for argument in absent {
            assert!(!line.contains(argument), "{argument} is in {line}");
        }
    }

    #[test]
    fn names_say_what_is_done() {
        assert_eq!(
            name(Access::RandRead, 4096, 32, Engine::IoUringFixed),
            "randread-4k-qd32-io_uring-fixed"
        );
        assert_eq!(
            name(Access::ReadWrite, 512, 1, Engine::Psync),
            "rw-512-qd1-psync"
        );
    }

    #[test]
    fn a_plain_job_does_what_it_says() {
        let line = line(&Job::new("x", "/dev/x", Engine::Psync, 1 << 20));
        expect(
            &line,
            &[
                "--name=x",
                "--filename=/dev/x",
                "--ioengine=psync",
                "--rw=write",
                "--bs=4096",
                "--iodepth=1",
                "--numjobs=1",
                "--size=1048576",
                "--direct=1",
                "--output-format=json",
                "--output=/run/fio.json",
            ],
            &[
                "verify", "hipri", "batch", "offset", "time", "io_size", "gtod",
            ],
        );
    }

    #[test]
    fn every_field_has_an_argument() {
        let job = Job {
            access: Access::RandRead,
            block: 4097,
            depth: 32,
            processes: 2,
            skew: 3,
            direct: false,
            polled: true,
            batch: Some(8),
            extent: Extent::Time(Duration::from_millis(1500)),
            bare: true,
            further: vec!["--clocksource=clock_gettime".into()],
            ..Job::new("x", "/dev/x", Engine::IoUringFixed, 1 << 20)
        };
        expect(
            &line(&job),
            &[
                "--ioengine=io_uring",
                "--fixedbufs=1",
                "--rw=randread",
                "--bs=4097",
                "--iodepth=32",
                "--numjobs=2",
                "--offset=3",
                "--mem_align=3",
                "--direct=0",
                "--hipri=1",
                "--iodepth_batch_submit=8",
                "--iodepth_batch_complete_min=8",
                "--time_based",
                "--runtime=1500ms",
                "--gtod_reduce=1",
                "--clocksource=clock_gettime",
            ],
            &["verify"],
        );
        let reaping = line(&Job::new("x", "/dev/x", Engine::LibaioUserReap, 1));
        expect(&reaping, &["--ioengine=libaio", "--userspace_reap"], &[]);
    }

    #[test]
    fn processes_share_the_transfers() {
        let job = Job {
            processes: 2,
            extent: Extent::Transfers(9),
            ..Job::new("x", "/dev/x", Engine::Psync, 1 << 20)
        };
        expect(&line(&job), &["--io_size=20480"], &["time"]);
    }

    #[test]
    fn a_layout_is_written_and_not_verified() {
        let job = |verification| Job {
            verification,
            ..Job::new("x", "/dev/x", Engine::Libaio, 1 << 20)
        };
        let layout = line(&job(Verification::Layout));
        expect(&layout, &["--verify=crc32c", "--do_verify=0"], &["backlog"]);
        let all = line(&job(Verification::All));
        expect(
            &all,
            &["--verify=crc32c", "--do_verify=1", "--verify_fatal=0"],
            &["backlog"],
        );
        let backlog = line(&job(Verification::Backlog(64)));
        expect(&backlog, &["--do_verify=1", "--verify_backlog=64"], &[]);
    }
}
