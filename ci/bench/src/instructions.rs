// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Instructions that the guest executes for a transfer, counted by a QEMU plugin
//! (`ci/bench/plugin`).
//!
//! The count includes all of the guest: fio, the kernel, the driver, interrupts, and
//! busy-polling. It depends far less on the load of the host than the throughput does. A
//! job runs twice, with few and with many transfers. The difference of the counts is free
//! of the constant cost of starting and ending the job.
//!
//! The plugin slows the guest, so the counts come from a virtual machine of their own.

use std::fmt;
use std::io::Read;
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

    /// Number of instructions that the guest has executed since it was started.
    pub fn read(&self) -> Result<u64> {
        let problem = || Error::io("reading the count of the QEMU plugin");
        let mut socket = UnixStream::connect(self.socket()).map_err(problem())?;
        socket
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .map_err(problem())?;
        // An empty request, for all instructions.
        socket.shutdown(Shutdown::Write).map_err(problem())?;
        let mut text = String::new();
        socket.read_to_string(&mut text).map_err(problem())?;
        parse(&text).ok_or_else(|| Error::Protocol(format!("{text:?} instructions")))
    }

    /// Instructions for each transfer of `job` on `column`, whose own variant it is; `None`
    /// for a column that runs no fio, and if the counts show nothing.
    pub fn per_transfer(
        &self,
        bench: &BenchContext<'_>,
        column: Column,
        job: &Job,
    ) -> Result<Option<f64>> {
        if column == Column::Memcpy {
            return Ok(None);
        }
        let (few, many) = transfers(job);
        let count = |transfers| -> Result<Count> {
            let extent = Extent::Transfers(transfers);
            Ok(bench.run(column, job, extent, || self.read())?.into())
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

/// The counts of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    ios: u64,
    instructions: u64,
}

impl From<Run<u64>> for Count {
    fn from(run: Run<u64>) -> Self {
        Self {
            ios: run.ios,
            instructions: run.end.saturating_sub(run.begin),
        }
    }
}

impl Count {
    fn per_transfer_since(self, few: Self) -> Option<f64> {
        let ios = self.ios.checked_sub(few.ios).filter(|ios| *ios != 0)?;
        let instructions = self.instructions.checked_sub(few.instructions)?;
        Some(instructions as f64 / ios as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_is_constant_does_not_count() {
        let count = |ios, instructions| Count { ios, instructions };
        let few = count(500, 7_000_000);
        assert_eq!(
            count(2500, 25_000_000).per_transfer_since(few),
            Some(9000.0)
        );
        // Less for more transfers is noise, and no more transfers show nothing.
        assert_eq!(count(2500, 6_000_000).per_transfer_since(few), None);
        assert_eq!(few.per_transfer_since(few), None);
        assert_eq!(count(400, 8_000_000).per_transfer_since(few), None);
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
        assert!(counter.read().is_err());
        let listener = UnixListener::bind(counter.socket()).unwrap();
        let plugin = std::thread::spawn(move || {
            for answer in ["18446744073709551615\n", "12", ""] {
                listener
                    .accept()
                    .unwrap()
                    .0
                    .write_all(answer.as_bytes())
                    .unwrap();
            }
        });
        assert_eq!(counter.read().unwrap(), u64::MAX);
        // A line without an end is not complete.
        assert!(counter.read().is_err());
        assert!(counter.read().is_err());
        plugin.join().unwrap();
        let [option, value] = counter.qemu_arguments(Path::new("/a,b.so"));
        assert_eq!(option, "-plugin");
        assert!(value.starts_with("file=/a,,b.so,socket=/tmp/"), "{value}");
    }
}
