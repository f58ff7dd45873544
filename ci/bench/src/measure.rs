// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Measures one job on one device.

use std::collections::HashMap;
use std::time::Duration;

use ringbar_fio::{Engine, Extent};
use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::{Error, Result};

use crate::column::Column;
use crate::counters::{Counters, interrupts_numbered};
use crate::fio;
use crate::guest::Node;
use crate::job::Job;
use crate::perf;
use crate::usage::Usage;

/// Lines that fio and `ringbar-perf` print when the transfers begin and end.
const BEGIN: &str = "begin";
const END: &str = "end";

/// Makes the C library copy with vector instructions for all sizes. It would use `rep
/// movsb`, which is as fast on real processors, but TCG executes it byte by byte, up to
/// eight times slower, and the column is meant as an upper limit.
const COPY_BY_LOOP: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.x86_rep_movsb_threshold=1000000000",
);

/// Makes the C library write to all memory that it allocates. Otherwise the first
/// transfer into each page of a buffer includes a page fault, and a job with large
/// buffers does little else in 1 s.
const FILL_BUFFERS: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.perturb=90");

/// Time that a measurement in the guest may take beyond its run time.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(120);

/// One measurement. Values that a device does not provide are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Transfers per second, both directions together.
    pub iops: f64,
    /// Interrupts of the device in the guest per transfer.
    pub interrupts_per_io: Option<f64>,
    /// Doorbells per transfer.
    pub doorbells_per_io: Option<f64>,
    /// System calls of the program per transfer. Only `ringbar-perf` counts them.
    pub system_calls_per_io: Option<f64>,
    /// CPU time of the device's process on the host per transfer, in microseconds.
    pub daemon_cpu_us_per_io: Option<f64>,
    /// CPU time of QEMU, including the guest, per transfer, in microseconds.
    pub qemu_cpu_us_per_io: Option<f64>,
}

/// The machine to measure on.
#[derive(Debug)]
pub struct BenchContext<'a> {
    /// The guest.
    pub agent: &'a Agent,
    /// Devices in the guest.
    pub nodes: HashMap<Column, Node>,
    /// Bytes of each device.
    pub size: u64,
    /// Process id of QEMU.
    pub qemu: u32,
    /// Process ids of the daemons, for columns that have one.
    pub daemons: HashMap<Column, u32>,
}

impl BenchContext<'_> {
    /// Runs `job` on `column` for `time`. `job` is the column's own variant.
    pub fn measure(&self, column: Column, job: &Job, time: Duration) -> Result<Sample> {
        if column == Column::Memcpy {
            return self.copy(job, time);
        }
        let node = self.node(column)?;
        let before = self.counters(column, node)?;
        let run = self.run(column, job, Extent::Time(time), || self.host_usage(column))?;
        let after = self.counters(column, node)?;

        let per_io = |count: u64| count as f64 / run.ios as f64;
        let used = run.end.since(run.begin);
        let cpu = |time: Duration| time.as_secs_f64() * 1e6 / run.ios as f64;
        Ok(Sample {
            iops: run.iops,
            interrupts_per_io: after.interrupts_since(before).map(per_io),
            doorbells_per_io: after.doorbells_since(before).map(per_io),
            system_calls_per_io: run.system_calls.map(per_io),
            daemon_cpu_us_per_io: used.daemon.map(|usage| cpu(usage.cpu)),
            qemu_cpu_us_per_io: Some(cpu(used.qemu.cpu)),
        })
    }

    /// Runs `job` on `column` and calls `read` when its transfers begin and when they are done.
    /// `job` is the column's own variant.
    pub(super) fn run<T>(
        &self,
        column: Column,
        job: &Job,
        extent: Extent,
        read: impl Fn() -> Result<T>,
    ) -> Result<Run<T>> {
        let node = self.node(column)?;
        self.check_size(column, job)?;
        if job.lean {
            return self.run_lean(job, node, extent, read);
        }
        let mut fio_job = job.on(&node.path, node.direct, self.size, extent);
        // The lines bracket the job without fio's start, which takes most of a second
        // under TCG.
        fio_job.further = vec![
            format!("--exec_prerun=echo {BEGIN} >&9; :"),
            format!("--exec_postrun=echo {END} >&9; :"),
        ];

        let mut recorder = Recorder::default();
        let outcome = fio::run(self.agent, &fio_job, &[FILL_BUFFERS], |bytes| {
            recorder.on_output(bytes, &read);
        })?;
        let failed = |message| Error::Guest {
            what: format!("fio {job} on {column}"),
            message,
        };
        let report = outcome.result().map_err(failed)?;
        let ios = report.read.total_ios + report.write.total_ios;
        if ios == 0 {
            return Err(failed("nothing was transferred".into()));
        }
        let (begin, end) = recorder.finish()?;
        Ok(Run {
            ios,
            iops: report.read.iops + report.write.iops,
            system_calls: None,
            begin,
            end,
        })
    }

    /// As [`Self::run`], with `ringbar-perf` in place of fio.
    fn run_lean<T>(
        &self,
        job: &Job,
        node: &Node,
        extent: Extent,
        read: impl Fn() -> Result<T>,
    ) -> Result<Run<T>> {
        let mut recorder = Recorder::default();
        let report = perf::run(self.agent, job, node, self.size, extent, |bytes| {
            recorder.on_output(bytes, &read);
        })?;
        let (begin, end) = recorder.finish()?;
        Ok(Run {
            ios: report.transfers,
            iops: report.transfers_per_second,
            system_calls: Some(report.system_calls),
            begin,
            end,
        })
    }

    fn node(&self, column: Column) -> Result<&Node> {
        self.nodes
            .get(&column)
            .ok_or_else(|| Error::Protocol(format!("{column} has no device")))
    }

    fn check_size(&self, column: Column, job: &Job) -> Result<()> {
        if job.block > self.size {
            return Err(Error::Protocol(format!(
                "{job} has larger blocks than {column} has bytes"
            )));
        }
        Ok(())
    }

    /// Fills the column's device, so that the jobs read no block that was never written.
    pub fn fill(&self, column: Column) -> Result<()> {
        let node = match self.nodes.get(&column) {
            Some(node) if node.direct => node,
            _ => return Ok(()),
        };
        let job = ringbar_fio::Job {
            block: 1 << 20,
            depth: 4,
            ..ringbar_fio::Job::new("fill", &node.path, Engine::Libaio, self.size)
        };
        let outcome = fio::run(self.agent, &job, &[], |_| {})?;
        outcome.result().map(drop).map_err(|message| Error::Guest {
            what: format!("filling {column}"),
            message,
        })
    }

    /// Measures copies within the guest.
    fn copy(&self, job: &Job, time: Duration) -> Result<Sample> {
        let command = GuestCommand::new("ringbar-guest-tests").args([
            "memcpy".into(),
            format!("--block={}", job.block),
            format!("--buffers={}", job.depth),
            format!("--memory={}", self.size),
            format!("--threads={}", job.jobs),
            format!("--milliseconds={}", time.as_millis()),
            format!(
                "--direction={}",
                if job.access.reads() { "read" } else { "write" }
            ),
        ]);
        let command = command.env(COPY_BY_LOOP.0, COPY_BY_LOOP.1);
        let text = self.agent.check(&command, time + TIMEOUT_MARGIN)?;
        let iops = text
            .trim()
            .parse()
            .map_err(|_| Error::Protocol(format!("{text:?} copies per second")))?;
        Ok(Sample {
            iops,
            ..Sample::default()
        })
    }

    fn counters(&self, column: Column, node: &Node) -> Result<GuestCounters> {
        if column.is_ringbar() {
            let counters = Counters::read(self.agent)?;
            return Ok(GuestCounters {
                interrupts: Some(counters.interrupts),
                doorbells: Some(counters.doorbells),
            });
        }
        let count = |numbers: &Vec<u32>| interrupts_numbered(self.agent, numbers);
        Ok(GuestCounters {
            interrupts: node.interrupts.as_ref().map(count).transpose()?,
            doorbells: None,
        })
    }

    fn host_usage(&self, column: Column) -> Result<HostUsage> {
        let daemon = self.daemons.get(&column);
        Ok(HostUsage {
            qemu: Usage::of(self.qemu)?,
            daemon: daemon.map(|pid| Usage::of(*pid)).transpose()?,
        })
    }
}

/// A run of fio or `ringbar-perf`.
pub(super) struct Run<T> {
    /// Number of transfers.
    pub ios: u64,
    /// Transfers per second.
    iops: f64,
    /// System calls that the program has made for the transfers. fio does not count them.
    system_calls: Option<u64>,
    /// The value that was read when the transfers began.
    pub begin: T,
    /// The value that was read when they ended.
    pub end: T,
}

#[cfg(test)]
impl<T> Run<T> {
    /// A run with these values.
    pub(super) fn of(ios: u64, begin: T, end: T) -> Self {
        let iops = 1.0;
        Self {
            ios,
            iops,
            system_calls: None,
            begin,
            end,
        }
    }
}

/// Counters of the guest.
#[derive(Clone, Copy, Debug)]
struct GuestCounters {
    interrupts: Option<u64>,
    doorbells: Option<u64>,
}

impl GuestCounters {
    fn interrupts_since(self, earlier: Self) -> Option<u64> {
        Some(self.interrupts?.saturating_sub(earlier.interrupts?))
    }

    fn doorbells_since(self, earlier: Self) -> Option<u64> {
        Some(self.doorbells?.saturating_sub(earlier.doorbells?))
    }
}

/// CPU time of the processes on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HostUsage {
    qemu: Usage,
    daemon: Option<Usage>,
}

impl HostUsage {
    fn since(self, earlier: Self) -> Self {
        Self {
            qemu: self.qemu.since(earlier.qemu),
            daemon: self
                .daemon
                .zip(earlier.daemon)
                .map(|(later, earlier)| later.since(earlier)),
        }
    }
}

/// Reads a value when a fio job begins and when it ends.
struct Recorder<T> {
    output: Vec<u8>,
    begin: Option<T>,
    end: Option<T>,
    problem: Option<Error>,
}

impl<T> Default for Recorder<T> {
    fn default() -> Self {
        Self {
            output: Vec::new(),
            begin: None,
            end: None,
            problem: None,
        }
    }
}

impl<T> Recorder<T> {
    fn on_output(&mut self, bytes: &[u8], read: impl Fn() -> Result<T>) {
        self.output.extend_from_slice(bytes);
        while let Some(length) = self.output.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = self.output.drain(..=length).collect();
            let line = line.trim_ascii();
            // With several jobs, the first begin and the last end count.
            let place = match line {
                line if line == BEGIN.as_bytes() && self.begin.is_none() => &mut self.begin,
                line if line == END.as_bytes() => &mut self.end,
                _ => continue,
            };
            match read() {
                Ok(value) => *place = Some(value),
                Err(error) => self.problem = Some(error),
            }
        }
    }

    fn finish(self) -> Result<(T, T)> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        self.begin.zip(self.end).ok_or_else(|| {
            Error::Protocol("no line was printed when the transfers began or ended".into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_first_begin_and_the_last_end_count() {
        let seconds = Cell::new(0);
        let read_usage = || {
            seconds.set(seconds.get() + 1);
            let usage = Usage {
                cpu: Duration::from_secs(seconds.get() * seconds.get()),
                waits: 0,
            };
            Ok(HostUsage {
                qemu: usage,
                daemon: Some(usage),
            })
        };
        let mut recorder = Recorder::default();
        for piece in ["fio-3\nbeg", "in\nbegin\n", "end\n", "en", "d\n"] {
            recorder.on_output(piece.as_bytes(), read_usage);
        }
        assert_eq!(seconds.get(), 3);
        let (begin, end) = recorder.finish().unwrap();
        let used = end.since(begin);
        assert_eq!(used.qemu.cpu, Duration::from_secs(8));
        assert_eq!(used.daemon, Some(used.qemu));
    }

    #[test]
    fn silence_is_an_error() {
        let mut recorder = Recorder::default();
        recorder.on_output(b"begin\n", || Ok(1));
        assert!(recorder.finish().is_err());
    }

    #[test]
    fn what_is_not_counted_stays_unknown() {
        let none = GuestCounters {
            interrupts: Some(5),
            doorbells: None,
        };
        let later = GuestCounters {
            interrupts: Some(7),
            doorbells: Some(1),
        };
        assert_eq!(later.interrupts_since(none), Some(2));
        assert_eq!(later.doorbells_since(none), None);
    }
}
