// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can fail. Each message says what failed, where, and where known what to do.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::mapping::Access;
use crate::range::{Range, RangeError};
use crate::region::Region;

/// Result of what can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device or file could not be opened.
    #[error("opening {}: {source}{}", path.display(), open_hint(source))]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The size of a device or file could not be found out.
    #[error("size of {}: {source}{}", path.display(), gone_hint(source))]
    Size {
        /// Whose size.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Only Ringbar devices have regions, counters and events.
    #[error("{} is not a ringbar device: {reason}", path.display())]
    NotADevice {
        /// What it is about.
        path: PathBuf,
        /// How that is known.
        reason: String,
    },
    /// The driver does not tell of a device.
    #[error("asking for {}: {source}", path.display())]
    Info {
        /// Of what.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// A device was not reset.
    #[error("resetting {}: {source}{}", path.display(), reset_hint(*source))]
    Reset {
        /// What was to be reset.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// The range is not there.
    #[error("{}, region {region}: {source}", path.display())]
    Range {
        /// What was to be mapped.
        path: PathBuf,
        /// And which part.
        region: Region,
        /// Why not.
        source: RangeError,
    },
    /// A region for which there are no stores.
    #[error(
        "{}: region {region} can only be read; --write takes memory, uncached or cached",
        path.display()
    )]
    ReadOnly {
        /// What was to be written to.
        path: PathBuf,
        /// And which part.
        region: Region,
    },
    /// The kernel refused a map.
    #[error(
        "mapping {:#x} bytes at {:#x} of {}, region {region}: {source}{}",
        range.length, range.start, path.display(), map_hint(*source, *access)
    )]
    Map {
        /// What was to be mapped.
        path: PathBuf,
        /// Which part.
        region: Region,
        /// And of that.
        range: Range,
        /// What for.
        access: Access,
        /// Why not.
        source: Errno,
    },
    /// What was to be written could not be read.
    #[error("reading {name}: {source}; {written} bytes are written")]
    Source {
        /// Where from.
        name: String,
        /// How many bytes were stored before.
        written: u64,
        /// Why not.
        source: io::Error,
    },
    /// There is less to write than was asked for.
    #[error(
        "{name} has {found} bytes and not the {wanted} of --length; {written} bytes are written"
    )]
    SourceTooShort {
        /// Where from.
        name: String,
        /// How many there are.
        found: u64,
        /// How many there should be.
        wanted: u64,
        /// How many bytes were stored before.
        written: u64,
    },
    /// There is more to write than fits.
    #[error(
        "{name} has more than the {written} bytes up to the end, which are written; choose \
         with --offset and --length"
    )]
    SourceTooLong {
        /// Where from.
        name: String,
        /// How many bytes were stored.
        written: u64,
    },
    /// The output could not be written.
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
    /// No handler for SIGBUS.
    #[error("installing a signal handler: {0}")]
    Handler(io::Error),
}

impl Error {
    /// Whether it is only that nobody reads the output any more.
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
