// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Instructions that the guest executes for a transfer, counted by a QEMU plugin
//! (`ci/bench/plugin`).
//!
//! The count includes all of the guest: fio, the kernel, the driver, interrupts, and
//! busy-polling. For Ringbar's columns, the instructions of the driver's module are counted
//! as well. The count depends far less on the load of the host than the throughput does. A
//! job runs twice, with few and with many transfers. The difference of the counts is free
//! of the constant cost of starting and ending the job.
//!
//! The plugin slows the guest, so the counts come from a virtual machine of their own.

use std::fmt;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringbar_fio::Extent;
use ringbar_vm::error::{Error, Result};
use ringbar_vm::qemu;
use ringbar_vm::setup::Accelerator;
use ringbar_vm::temporary::TemporaryDir;
use serde::{Serialize, Serializer};

use crate::column::Column;
use crate::job::Job;
use crate::measure::{BenchContext, Run};
use crate::module::AddressRange;

/// Maximum time for the plugin to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Number of transfers of few bytes that are counted.
const TRANSFERS: u64 = 20_000;

/// Block size in bytes whose pages need about as many instructions as the transfer itself.
const EQUAL_COST_BLOCK: u64 = 64 << 10;

/// Number of transfers of the first run, in addition to a multiple of the depth.
const FEW: u64 = 500;

/// Reason for which instructions are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCounted {
    /// The user switched the count off.
    Off,
    /// QEMU does not see the instructions that the processor executes for KVM.
    Kvm,
    /// No plugin was given.
    NoPlugin,
}

impl NotCounted {
    /// Text for a cell of a table.
    pub fn cell(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Kvm => "not with KVM",
            Self::NoPlugin => "no plugin",
        }
    }
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "--instructions is off",
            Self::Kvm => "QEMU cannot count instructions with KVM, only with TCG",
            Self::NoPlugin => "no --plugin was given; make bench builds one",
        })
    }
}

impl Serialize for NotCounted {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The plugin to count with, or the reason for which instructions are not counted.
pub fn plugin(
    wanted: bool,
    accel: Accelerator,
    plugin: Option<&Path>,
) -> std::result::Result<&Path, NotCounted> {
    match (wanted, accel, plugin) {
        (false, ..) => Err(NotCounted::Off),
        (true, Accelerator::Kvm, _) => Err(NotCounted::Kvm),
        (true, Accelerator::Tcg, plugin) => plugin.ok_or(NotCounted::NoPlugin),
    }
}

/// The count of a machine that runs with the plugin.
#[derive(Debug)]
pub struct InstructionCounter {
    directory: TemporaryDir,
}

impl InstructionCounter {
    /// Creates a directory for the plugin's socket.
    pub fn new() -> Result<Self> {
        Ok(Self {
            directory: TemporaryDir::new()?,
        })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("instructions.sock")
    }

    /// Arguments to add to QEMU's command line.
    pub fn qemu_arguments(&self, plugin: &Path) -> [String; 2] {
        qemu::plugin(plugin, &self.socket())
    }

    /// Number of instructions that the guest has executed since it was started: those of
    /// the pages of `range`, or all.
    fn read(&self, range: Option<AddressRange>) -> Result<u64> {
        let problem = || Error::io("reading the count of the QEMU plugin");
        let mut socket = UnixStream::connect(self.socket()).map_err(problem())?;
        socket
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .map_err(problem())?;
        if let Some(range) = range {
            writeln!(socket, "{range}").map_err(problem())?;
        }
        socket.shutdown(Shutdown::Write).map_err(problem())?;
        let mut text = String::new();
        socket.read_to_string(&mut text).map_err(problem())?;
        parse(&text).ok_or_else(|| Error::Protocol(format!("{text:?} instructions")))
    }

    /// Instructions for each transfer of `job` on `column`, whose own variant it is; `None`
    /// for a column that runs no fio, and if the counts show nothing. `driver` is the code
    /// whose part is counted for Ringbar's columns.
    pub fn per_transfer(
        &self,
        bench: &BenchContext<'_>,
        column: Column,
        job: &Job,
        driver: AddressRange,
    ) -> Result<Option<PerTransfer>> {
        if column == Column::Memcpy {
            return Ok(None);
        }
        let (few, many) = transfers(job);
        let driver = column.is_ringbar().then_some(driver);
        let read = || -> Result<Reading> {
            Ok(Reading {
                all: self.read(None)?,
                module: driver.map(|range| self.read(Some(range))).transpose()?,
            })
        };
        let count = |transfers| -> Result<Count> {
            let extent = Extent::Transfers(transfers);
            Ok(bench.run(column, job, extent, read)?.into())
        };
        let few = count(few)?;
        Ok(count(many)?.per_transfer_since(few))
    }
}

/// Numbers of transfers of the two runs. Larger blocks cost more instructions, so fewer of
/// them show the same difference.
fn transfers(job: &Job) -> (u64, u64) {
    let in_flight = u64::from(job.depth) * u64::from(job.jobs);
    let few = FEW + 4 * in_flight;
    let counted = TRANSFERS * EQUAL_COST_BLOCK / (EQUAL_COST_BLOCK + job.block);
    (few, few + counted.max(in_flight))
}

fn parse(text: &str) -> Option<u64> {
    text.strip_suffix('\n')?.parse().ok()
}

/// Instructions of the guest for each transfer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerTransfer {
    /// Those of the whole guest.
    pub all: f64,
    /// Those of the driver's module; `None` for a peer, and if the counts show nothing.
    pub module: Option<f64>,
}

/// Numbers of instructions: since the guest was started, or of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    all: u64,
    module: Option<u64>,
}

/// The counts of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    ios: u64,
    instructions: Reading,
}

impl From<Run<Reading>> for Count {
    fn from(run: Run<Reading>) -> Self {
        let modules = run.end.module.zip(run.begin.module);
        Self {
            ios: run.ios,
            instructions: Reading {
                all: run.end.all.saturating_sub(run.begin.all),
                module: modules.map(|(end, begin)| end.saturating_sub(begin)),
            },
        }
    }
}

impl Count {
    fn per_transfer_since(self, few: Self) -> Option<PerTransfer> {
        let ios = self.ios.checked_sub(few.ios).filter(|ios| *ios != 0)?;
        let per_transfer = |many: u64, few: u64| Some(many.checked_sub(few)? as f64 / ios as f64);
        let (many, few) = (self.instructions, few.instructions);
        Some(PerTransfer {
            all: per_transfer(many.all, few.all)?,
            module: many
                .module
                .zip(few.module)
                .and_then(|(many, few)| per_transfer(many, few)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_is_constant_does_not_count() {
        let count = |ios, all| Count {
            ios,
            instructions: Reading { all, module: None },
        };
        let few = count(500, 7_000_000);
        assert_eq!(
            count(2500, 25_000_000).per_transfer_since(few),
            Some(PerTransfer {
                all: 9000.0,
                module: None
            })
        );
        // Less for more transfers is noise, and no more transfers show nothing.
        assert_eq!(count(2500, 6_000_000).per_transfer_since(few), None);
        assert_eq!(few.per_transfer_since(few), None);
        assert_eq!(count(400, 8_000_000).per_transfer_since(few), None);
    }

    #[test]
    fn the_module_is_counted_apart() {
        let reading = |all, module| Reading {
            all,
            module: Some(module),
        };
        let run = |ios, module: u64| {
            let run = Run::of(
                ios,
                reading(1000, 50),
                reading(1000 + 20 * ios, 50 + module),
            );
            Count::from(run)
        };
        let few = run(500, 900);
        assert_eq!(few.instructions, reading(10_000, 900));
        let expected = |module| PerTransfer { all: 20.0, module };
        let many = run(2500, 4900);
        assert_eq!(many.per_transfer_since(few), Some(expected(Some(2.0))));
        // Noise in one of the counts does not hide the other.
        assert_eq!(run(2500, 800).per_transfer_since(few), Some(expected(None)));
    }

    #[test]
    fn large_transfers_are_counted_less_often() {
        let counted = |name: &str| {
            let (few, many) = transfers(&name.parse().unwrap());
            (few, many - few)
        };
        assert_eq!(counted("read-4k-qd32-io_uring"), (628, 18_823));
        assert_eq!(counted("read-1m-qd4-io_uring"), (516, 1176));
        // Never less than what is in flight.
        assert_eq!(counted("read-4k-qd4096-libaio-j8").1, 32_768);
    }

    #[test]
    fn only_tcg_with_a_plugin_counts() {
        let file = Path::new("/p.so");
        let (tcg, kvm) = (Accelerator::Tcg, Accelerator::Kvm);
        assert_eq!(plugin(true, tcg, Some(file)), Ok(file));
        assert_eq!(plugin(true, tcg, None), Err(NotCounted::NoPlugin));
        assert_eq!(plugin(true, kvm, Some(file)), Err(NotCounted::Kvm));
        assert_eq!(plugin(false, kvm, Some(file)), Err(NotCounted::Off));
        assert!(NotCounted::Kvm.to_string().contains("with KVM"));
    }

    #[test]
    fn the_count_comes_from_the_socket() {
        let counter = InstructionCounter::new().unwrap();
        assert!(counter.read(None).is_err());
        let listener = UnixListener::bind(counter.socket()).unwrap();
        let plugin = std::thread::spawn(move || {
            let answers = [
                "18446744073709551615\n",
                "7\n",
                "12",
                "",
                "invalid request\n",
            ];
            answers.map(|answer| {
                let mut connection = listener.accept().unwrap().0;
                let mut request = String::new();
                // Ends only because the client shuts down its writing side.
                connection.read_to_string(&mut request).unwrap();
                connection.write_all(answer.as_bytes()).unwrap();
                request
            })
        });
        let range = AddressRange::new(0xffff_ffff_c028_0000, 0xffff_ffff_c02a_1000);
        assert_eq!(counter.read(None).unwrap(), u64::MAX);
        assert_eq!(counter.read(range).unwrap(), 7);
        // A line without an end is not complete.
        for _ in 0..3 {
            assert!(counter.read(None).is_err());
        }
        let requests = plugin.join().unwrap();
        assert_eq!(
            requests[..3],
            ["", "ffffffffc0280000-ffffffffc02a1000\n", ""]
        );
        let [option, value] = counter.qemu_arguments(Path::new("/a,b.so"));
        assert_eq!(option, "-plugin");
        assert!(value.starts_with("file=/a,,b.so,socket=/tmp/"), "{value}");
    }
}
