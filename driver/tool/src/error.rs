// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors. Each message names the operation and the file, and a remedy if one is known.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::range::{Range, RangeError};
use crate::region::Region;
use crate::sys::mapping::Access;

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
    #[error("reading {name}: {source}; {written} bytes are written")]
    Source {
        /// Name of the source.
        name: String,
        /// Number of bytes that were stored before.
        written: u64,
        /// Cause.
        source: io::Error,
    },
    /// The source is shorter than `--length`.
    #[error(
        "{name} has {found} bytes and not the {wanted} of --length; {written} bytes are written"
    )]
    SourceTooShort {
        /// Name of the source.
        name: String,
        /// Number of bytes of the source.
        found: u64,
        /// Number of bytes of `--length`.
        wanted: u64,
        /// Number of bytes that were stored before.
        written: u64,
    },
    /// The source is longer than the range.
    #[error(
        "{name} has more than the {written} bytes up to the end, which are written; choose \
         with --offset and --length"
    )]
    SourceTooLong {
        /// Name of the source.
        name: String,
        /// Number of bytes that were stored.
        written: u64,
    },
    /// The output could not be written.
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
    /// The handler of SIGBUS could not be installed.
    #[error("installing a signal handler: {0}")]
    Handler(io::Error),
}

impl Error {
    /// Whether the reader of the output has closed the pipe.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
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
