// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors. Each message names the operation and the file, and a remedy if one is known.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::range::{Range, RangeError};
use crate::region::Region;
use crate::sys::mapping::Access;
use crate::sys::queue::Engine;

/// Result of a fallible operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device or file could not be opened.
    #[error("opening {}: {source}{}", path.display(), open_hint(source))]
    Open {
        /// File to open.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The size of a device or file could not be read.
    #[error("size of {}: {source}{}", path.display(), gone_hint(source))]
    Size {
        /// The device or file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Only Ringbar devices have regions, counters and events.
    #[error("{} is not a ringbar device: {reason}", path.display())]
    NotADevice {
        /// The file.
        path: PathBuf,
        /// Reason.
        reason: String,
    },
    /// The driver returned no information about a device.
    #[error("asking for {}: {source}", path.display())]
    Info {
        /// The device.
        path: PathBuf,
        /// Cause.
        source: Errno,
    },
    /// A device was not reset.
    #[error("resetting {}: {source}{}", path.display(), reset_hint(*source))]
    Reset {
        /// The device.
        path: PathBuf,
        /// Cause.
        source: Errno,
    },
    /// The range does not exist.
    #[error("{}, region {region}: {source}", path.display())]
    Range {
        /// File to map.
        path: PathBuf,
        /// Its region.
        region: Region,
        /// Cause.
        source: RangeError,
    },
    /// The region is read-only.
    #[error(
        "{}: region {region} can only be read; --write takes memory, uncached or cached",
        path.display()
    )]
    ReadOnly {
        /// File to write to.
        path: PathBuf,
        /// Its region.
        region: Region,
    },
    /// The kernel refused a map.
    #[error(
        "mapping {:#x} bytes at {:#x} of {}, region {region}: {source}{}",
        range.length, range.start, path.display(), map_hint(*source, *access)
    )]
    Map {
        /// File to map.
        path: PathBuf,
        /// Its region.
        region: Region,
        /// Range in the region.
        range: Range,
        /// Requested access.
        access: Access,
        /// Cause.
        source: Errno,
    },
    /// The source of the bytes could not be read.
    #[error("reading {name}: {source}; {done} bytes of it are done")]
    Source {
        /// Name of the source.
        name: String,
        /// Number of bytes that were read before.
        done: u64,
        /// Cause.
        source: io::Error,
    },
    /// The source is shorter than `--length`.
    #[error(
        "{name} has {found} bytes and not the {wanted} of --length; {done} bytes of it are done"
    )]
    SourceTooShort {
        /// Name of the source.
        name: String,
        /// Number of bytes of the source.
        found: u64,
        /// Number of bytes of `--length`.
        wanted: u64,
        /// Number of bytes that were written or compared before.
        done: u64,
    },
    /// The source is longer than the range.
    #[error(
        "{name} has more than the {done} bytes up to the end, which are done; choose \
         with --offset and --length"
    )]
    SourceTooLong {
        /// Name of the source.
        name: String,
        /// Number of bytes that were written or compared.
        done: u64,
    },
    /// An interface for transfers could not be used.
    #[error("{engine}: {source}{}", engine_hint(*engine, source))]
    Engine {
        /// The interface.
        engine: Engine,
        /// Cause.
        source: io::Error,
    },
    /// A transfer failed.
    #[error(
        "{verb} {length} bytes at {offset:#x} of {}: {}; the {done} bytes before are done{}",
        path.display(), transfer_cause(source), transfer_hint(source)
    )]
    Transfer {
        /// Reading or writing.
        verb: &'static str,
        /// The device or file.
        path: PathBuf,
        /// First byte that was not transferred.
        offset: u64,
        /// Number of bytes of the block from there on.
        length: usize,
        /// Number of bytes that were transferred before.
        done: u64,
        /// Cause.
        source: io::Error,
    },
    /// Data differs from what was expected.
    #[error(
        "{}: {bytes} bytes in {blocks} blocks differ from {expected_data}, the first at \
         {offset:#x}: {found:#04x} instead of {expected:#04x}{}",
        path.display(), verify_hint(expected_data)
    )]
    Verify {
        /// The device or file.
        path: PathBuf,
        /// Name of what was expected.
        expected_data: String,
        /// Number of bytes that differ.
        bytes: u64,
        /// Number of blocks with such bytes.
        blocks: u64,
        /// Offset of the first one.
        offset: u64,
        /// Its expected value.
        expected: u8,
        /// The value that it has.
        found: u8,
    },
    /// Data could not be written to its destination.
    #[error("writing {name}: {source}; {done} bytes of it are done")]
    Destination {
        /// Name of the destination.
        name: String,
        /// Number of bytes that were written before.
        done: u64,
        /// Cause.
        source: io::Error,
    },
    /// A benchmark needs a range of bytes.
    #[error("{} has no bytes to transfer", path.display())]
    Empty {
        /// The device.
        path: PathBuf,
    },
    /// A file of the kernel could not be read.
    #[error("reading {}: {source}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The output could not be written.
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(io::Error),
    /// The handler of SIGBUS could not be installed.
    #[error("installing a signal handler: {0}")]
    Handler(io::Error),
}

impl Error {
    /// Whether the reader of the output has closed the pipe.
    pub fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Output(error) | Self::Destination { source: error, .. } => {
                error.kind() == io::ErrorKind::BrokenPipe
            }
            _ => false,
        }
    }
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; for a ringbar device: load the driver (modprobe ringbar), and see dmesg"
        }
        io::ErrorKind::PermissionDenied => "; try as root",
        _ => gone_hint(error),
    }
}

fn reset_hint(error: Errno) -> &'static str {
    match error {
        Errno::PERM => "; it takes an administrator, try as root",
        Errno::IO | Errno::TIMEDOUT => "; the device does not come back, see dmesg",
        _ => "",
    }
}

fn gone_hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NODEV | Errno::NXIO) => "; the device behind it is gone, see dmesg",
        Some(Errno::SPIPE) => "; a pipe cannot be mapped",
        _ => "",
    }
}

fn map_hint(error: Errno, access: Access) -> &'static str {
    match error {
        Errno::ACCESS | Errno::PERM if access == Access::ReadWrite => {
            "; it may not be mapped for writing"
        }
        Errno::ACCESS | Errno::PERM => "; it may not be mapped",
        Errno::NODEV => "; the file cannot be mapped, or the device is gone",
        Errno::INVAL | Errno::NXIO => "; there is nothing to map, see ringbar map --help",
        Errno::NOMEM | Errno::OVERFLOW => "; choose less with --length",
        _ => "",
    }
}

fn engine_hint(engine: Engine, error: &io::Error) -> &'static str {
    match (engine, Errno::from_io_error(error)) {
        (Engine::IoUring, Some(Errno::PERM | Errno::NOSYS | Errno::ACCESS)) => {
            "; the kernel has no io_uring for you (sysctl kernel.io_uring_disabled), choose \
             --engine libaio or sync"
        }
        (Engine::Libaio, Some(Errno::AGAIN)) => {
            "; too many contexts in the system, choose a smaller --depth or see sysctl fs.aio-max-nr"
        }
        (Engine::Libaio, Some(Errno::NOSYS)) => "; choose --engine io_uring or sync",
        (_, Some(Errno::NOMEM)) => "; choose a smaller --depth or --block-size",
        _ => "",
    }
}

fn transfer_cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "there are no more bytes".into(),
        _ => error.to_string(),
    }
}

fn transfer_hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::IO) => {
            "; the device failed or is out of service, see ringbar info and ringbar events"
        }
        Some(Errno::NODEV | Errno::NXIO) => "; the device is gone, see dmesg",
        Some(Errno::NOSPC) => "; the device may have become smaller, see ringbar events",
        Some(Errno::INVAL) => "; the file may not support this --engine",
        None => "; the device or file may have become smaller, see ringbar events",
        _ => "",
    }
}

fn verify_hint(expected: &str) -> &'static str {
    match expected.starts_with("the pattern") {
        true => "; was the range written by ringbar dma write with this --seed?",
        false => "",
    }
}
