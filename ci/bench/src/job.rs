// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Jobs and their names,
//! `<rw>-<bs>-qd<depth>-<engine>[-fixed][-iopoll][-batch<n>][-j<numjobs>][-lean]`.

use std::fmt;
use std::str::FromStr;

use ringbar_fio::{Access, Engine, Extent};

/// Smallest block in bytes: the sector size of the block devices.
const MIN_BLOCK: u64 = 512;

/// Largest block in bytes.
const MAX_BLOCK: u64 = 16 << 20;

/// Maximum number of transfers in flight per fio job.
const MAX_DEPTH: u32 = 4096;

/// Maximum number of concurrent fio jobs.
const MAX_JOBS: u32 = 64;

/// Maximum bytes of all buffers together: they must fit into the guest's memory.
pub const MAX_IN_FLIGHT: u64 = 512 << 20;

/// A job, run on each device by fio or by `ringbar-perf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Direction and order.
    pub access: Access,
    /// Block size in bytes.
    pub block: u64,
    /// Transfers in flight per fio job.
    pub depth: u32,
    /// I/O engine; never the variant that reaps in user space.
    pub engine: Engine,
    /// Whether completions are polled for (`hipri`, `IORING_SETUP_IOPOLL`).
    pub polled: bool,
    /// Number of transfers that are submitted, and waited for, together.
    pub batch: Option<u32>,
    /// Number of concurrent processes.
    pub jobs: u32,
    /// Whether `ringbar-perf` runs the job, which costs less than fio.
    pub lean: bool,
}

/// Error of parsing the name of a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no job: {problem} (<rw>-<bs>-qd<depth>-<engine>[-fixed][-iopoll][-batch<n>][-j<numjobs>][-lean])"
)]
pub struct JobError {
    name: String,
    problem: String,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ringbar_fio::name(self.access, self.block, self.depth, self.engine);
        f.write_str(&name)?;
        if self.polled {
            f.write_str("-iopoll")?;
        }
        if let Some(batch) = self.batch {
            write!(f, "-batch{batch}")?;
        }
        if self.jobs != 1 {
            write!(f, "-j{}", self.jobs)?;
        }
        if self.lean {
            f.write_str("-lean")?;
        }
        Ok(())
    }
}

impl FromStr for Job {
    type Err = JobError;

    fn from_str(name: &str) -> Result<Self, JobError> {
        parse(name).map_err(|problem| JobError {
            name: name.to_owned(),
            problem,
        })
    }
}

/// A decimal number from 1 to `most` without sign or leading zeros.
fn number(what: &str, text: &str, most: u32) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|n: &u32| (1..=most).contains(n) && n.to_string() == text)
        .ok_or_else(|| format!("{what} is {text:?}, not a number from 1 to {most}"))
}

fn parse(name: &str) -> Result<Job, String> {
    let mut parts = name.split('-');
    let mut part = |what: &str| {
        parts
            .next()
            .filter(|part| !part.is_empty())
            .ok_or_else(|| format!("{what} is missing"))
    };
    let access = part("what to do")?;
    let access = Access::TRANSFERS
        .into_iter()
        .find(|known| known.name() == access)
        .ok_or_else(|| {
            let known = Access::TRANSFERS.map(Access::name).join(", ");
            format!("{access:?} is none of {known}")
        })?;
    let block = part("the block size")?;
    let block = ringbar_size::parse(block)
        .map_err(|error| format!("the block size is {block:?}: {error}"))?;
    if !(MIN_BLOCK..=MAX_BLOCK).contains(&block) || !block.is_multiple_of(MIN_BLOCK) {
        return Err(format!(
            "the block size is {block}, not a multiple of 512 from 512 to 16m"
        ));
    }
    let depth = part("the depth")?;
    let depth = depth
        .strip_prefix("qd")
        .ok_or_else(|| format!("the depth is {depth:?} and does not begin with qd"))?;
    let depth = number("the depth", depth, MAX_DEPTH)?;
    let engine = match part("the engine")? {
        "psync" => Engine::Psync,
        "libaio" => Engine::Libaio,
        "io_uring" => Engine::IoUring,
        other => return Err(format!("{other:?} is none of psync, libaio, io_uring")),
    };
    let mut job = Job {
        access,
        block,
        depth,
        engine,
        polled: false,
        batch: None,
        jobs: 1,
        lean: false,
    };
    // Suffixes must come in the order of the name, so that each job has only one name.
    let mut last = 0;
    for suffix in parts {
        let place = if suffix == "fixed" {
            job.engine = Engine::IoUringFixed;
            1
        } else if suffix == "iopoll" {
            job.polled = true;
            2
        } else if let Some(batch) = suffix.strip_prefix("batch") {
            job.batch = Some(number("the batch", batch, depth)?);
            3
        } else if let Some(jobs) = suffix.strip_prefix('j') {
            job.jobs = number("the number of jobs", jobs, MAX_JOBS)?;
            4
        } else if suffix == "lean" {
            job.lean = true;
            5
        } else {
            return Err(format!(
                "{suffix:?} is none of fixed, iopoll, batch<n>, j<n>, lean"
            ));
        };
        if place <= last {
            return Err(format!("{suffix:?} comes twice or too late"));
        }
        last = place;
    }
    if engine != Engine::IoUring && (job.polled || job.engine == Engine::IoUringFixed) {
        return Err("only io_uring has fixed and iopoll".into());
    }
    if engine == Engine::Psync && (depth != 1 || job.batch.is_some()) {
        return Err("psync has one transfer in flight".into());
    }
    if job.lean && (job.jobs != 1 || matches!(access, Access::ReadWrite | Access::RandReadWrite)) {
        return Err("lean has one process and one direction".into());
    }
    if job.in_flight() > MAX_IN_FLIGHT {
        let most = ringbar_size::format(MAX_IN_FLIGHT);
        return Err(format!("its buffers together are larger than {most}"));
    }
    Ok(job)
}

impl Job {
    /// Size of all buffers together in bytes.
    pub fn in_flight(&self) -> u64 {
        self.block * u64::from(self.depth) * u64::from(self.jobs)
    }

    /// The same job with or without polling.
    pub fn polled(self, polled: bool) -> Self {
        Self { polled, ..self }
    }

    /// Whether the buffers are registered.
    pub fn fixed(&self) -> bool {
        self.engine == Engine::IoUringFixed
    }

    /// The same job without registered buffers.
    pub fn plain(self) -> Self {
        let engine = match self.engine {
            Engine::IoUringFixed => Engine::IoUring,
            other => other,
        };
        Self { engine, ..self }
    }

    /// Whether the engine is io_uring.
    pub fn uses_io_uring(&self) -> bool {
        self.engine.name() == Engine::IoUring.name()
    }

    /// The job on `size` bytes of this file.
    pub fn on(&self, file: &str, direct: bool, size: u64, extent: Extent) -> ringbar_fio::Job {
        ringbar_fio::Job {
            access: self.access,
            block: self.block,
            depth: self.depth,
            processes: self.jobs,
            direct,
            polled: self.polled,
            batch: self.batch,
            extent,
            bare: true,
            ..ringbar_fio::Job::new(self.to_string(), file, self.engine, size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn job(name: &str) -> Job {
        name.parse().unwrap()
    }

    #[test]
    fn names_say_what_is_done() {
        assert_eq!(
            job("randread-4k-qd32-io_uring"),
            Job {
                access: Access::RandRead,
                block: 4096,
                depth: 32,
                engine: Engine::IoUring,
                polled: false,
                batch: None,
                jobs: 1,
                lean: false,
            }
        );
        let fixed = job("write-128k-qd8-io_uring-fixed");
        assert!(fixed.fixed() && !fixed.plain().fixed());
        assert_eq!(fixed.plain().to_string(), "write-128k-qd8-io_uring");
        let all = job("randrw-512-qd64-io_uring-fixed-iopoll-batch8-j4");
        assert_eq!((all.batch, all.jobs, all.polled), (Some(8), 4, true));
        assert_eq!(job("rw-16m-qd1-psync").access, Access::ReadWrite);
        let lean = job("randread-4k-qd32-io_uring-fixed-batch32-lean");
        assert!(lean.lean && lean.plain().lean && lean.polled(true).lean);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (name, problem) in [
            ("", "what to do is missing"),
            ("readd-4k-qd1-psync", "\"readd\" is none of read, write"),
            ("read", "the block size is missing"),
            ("read-4x-qd1-psync", "the block size is \"4x\""),
            ("read-1000-qd1-psync", "multiple of 512"),
            ("read-32m-qd1-psync", "from 512 to 16m"),
            ("read-4k-32-libaio", "does not begin with qd"),
            ("read-4k-qd0-libaio", "not a number from 1 to 4096"),
            ("read-4k-qd032-libaio", "not a number from 1 to 4096"),
            ("read-4k-qd1", "the engine is missing"),
            ("read-4k-qd1-mmap", "none of psync, libaio, io_uring"),
            ("read-4k-qd2-psync", "psync has one transfer in flight"),
            ("read-4k-qd2-libaio-fixed", "only io_uring has fixed"),
            ("read-4k-qd2-io_uring-fast", "none of fixed, iopoll"),
            ("read-4k-qd2-io_uring-iopoll-fixed", "too late"),
            ("read-4k-qd2-io_uring-j2-j3", "comes twice"),
            ("read-4k-qd2-io_uring-lean-j2", "too late"),
            ("read-4k-qd2-io_uring-j2-lean", "one process"),
            ("randrw-4k-qd2-io_uring-lean", "one direction"),
            ("read-4k-qd2-io_uring-batch4", "the batch is \"4\""),
            ("read-4k-qd2-io_uring-j65", "from 1 to 64"),
            ("read-16m-qd64-io_uring", "larger than 512M"),
        ] {
            let error = name.parse::<Job>().unwrap_err().to_string();
            assert!(error.contains(problem), "{name}: {error}");
        }
    }

    #[test]
    fn every_part_of_the_name_reaches_fio() {
        let name = "randread-4k-qd32-io_uring-fixed-iopoll-batch8-j2";
        let extent = Extent::Transfers(7);
        let expected = ringbar_fio::Job {
            name: name.into(),
            file: "/dev/x".into(),
            engine: Engine::IoUringFixed,
            access: Access::RandRead,
            block: 4096,
            depth: 32,
            processes: 2,
            size: 1 << 20,
            skew: 0,
            direct: false,
            polled: true,
            batch: Some(8),
            extent,
            verification: ringbar_fio::Verification::None,
            bare: true,
            further: Vec::new(),
        };
        assert_eq!(job(name).on("/dev/x", false, 1 << 20, extent), expected);
    }

    /// Any job that has a name.
    fn jobs() -> impl Strategy<Value = Job> {
        let engines = [
            Engine::Psync,
            Engine::Libaio,
            Engine::IoUring,
            Engine::IoUringFixed,
        ];
        let blocks: Vec<u64> = (1..=64)
            .map(|n| n * 512)
            .chain([1 << 20, 16 << 20])
            .collect();
        (
            select(Access::TRANSFERS.to_vec()),
            select(blocks),
            1..=MAX_DEPTH,
            select(engines.to_vec()),
            any::<bool>(),
            proptest::option::of(1..=MAX_DEPTH),
            1..=MAX_JOBS,
            any::<bool>(),
        )
            .prop_map(
                |(access, block, depth, engine, polled, batch, jobs, lean)| {
                    let depth = if engine == Engine::Psync { 1 } else { depth };
                    Job {
                        access,
                        block,
                        depth,
                        engine,
                        polled: polled && engine.name() == "io_uring",
                        batch: batch
                            .filter(|_| engine != Engine::Psync)
                            .map(|n| n.min(depth)),
                        jobs,
                        lean: lean
                            && jobs == 1
                            && !matches!(access, Access::ReadWrite | Access::RandReadWrite),
                    }
                },
            )
            .prop_filter("too large", |job| job.in_flight() <= MAX_IN_FLIGHT)
    }

    proptest! {
        #[test]
        fn names_and_jobs_are_one_to_one(job in jobs()) {
            prop_assert_eq!(job.to_string().parse(), Ok(job));
        }

        #[test]
        fn any_text_is_a_job_or_an_error(text in "[a-z0-9_-]{0,40}|(rand)?read-[0-9]{1,20}[kmg]-qd[0-9]{1,12}-(libaio|io_uring)(-[a-z]{1,6}[0-9]{0,12}){0,3}") {
            match text.parse::<Job>() {
                Ok(job) => prop_assert_eq!(job.to_string().parse(), Ok(job)),
                Err(error) => prop_assert!(error.to_string().contains("is no job: ")),
            }
        }
    }
}
