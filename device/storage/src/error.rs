// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why a storage cannot be opened, used or resized.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use vm_memory::mmap::MmapRegionError;

use crate::nbd::NbdError;

/// Why a storage cannot be opened. The messages say what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The size is 0 or too large.
    #[error("a size of {0} bytes is impossible: it must be at least 1 and at most 2^63 - 1")]
    Size(u64),
    /// The file does not exist and no size says how large to make it.
    #[error("{} does not exist (or is empty): give a size to create it with", .0.display())]
    SizeMissing(PathBuf),
    /// The file cannot be opened.
    #[error("cannot open {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The path names something other than a regular file.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The path names neither a block device nor a regular file.
    #[error("{} is neither a block device nor a regular file", .0.display())]
    NotABlockDevice(PathBuf),
    /// The block device cannot be written to.
    #[error("{} is read-only, which a device memory cannot be", .0.display())]
    ReadOnly(PathBuf),
    /// The file does not support direct I/O.
    #[error("{} does not support direct I/O (O_DIRECT): use file storage", .path.display())]
    NoDirectIo {
        /// The file.
        path: PathBuf,
        /// What the kernel says, if it says anything.
        source: Option<io::Error>,
    },
    /// The size is no multiple of the blocks of direct I/O.
    #[error(
        "a size of {size} bytes is impossible for {}: it must be a multiple of {granularity}",
        .path.display()
    )]
    Granularity {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        size: u64,
        /// Bytes of a block.
        granularity: u64,
    },
    /// The block device is smaller than the size that is wanted.
    #[error("{} has {length} bytes, and {size} are wanted", .path.display())]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Bytes wanted.
        size: u64,
        /// Bytes of the device.
        length: u64,
    },
    /// There is no io_uring.
    #[error("cannot use io_uring for {}", .path.display())]
    Ring {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The export of an NBD server cannot be used.
    #[error("cannot use {uri}")]
    Nbd {
        /// Its address.
        uri: String,
        /// Why.
        source: Box<NbdError>,
    },
    /// Another process uses the file.
    #[error(
        "{} is in use: another device holds its lock (or a virtual machine that \
         still maps the memory of one), or it is a disk that is mounted; stop that first",
        .0.display()
    )]
    InUse(PathBuf),
    /// The file cannot be locked.
    #[error("cannot lock {}", .path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The file cannot be given its size.
    #[error("cannot allocate {size} bytes for {}", .path.display())]
    Allocate {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        size: u64,
        /// What the kernel says.
        source: io::Error,
    },
    /// Anonymous memory cannot be had.
    #[error("cannot create {size} bytes of shared memory")]
    Memory {
        /// Bytes wanted.
        size: u64,
        /// What the kernel says.
        source: io::Error,
    },
    /// The size is no number of huge pages.
    #[error(
        "a size of {size} bytes is impossible: it must be a multiple of the huge page, {page} bytes"
    )]
    HugePageSize {
        /// Bytes wanted.
        size: u64,
        /// Bytes of a huge page.
        page: u64,
    },
    /// The system has no pages of that size.
    #[error(
        "this system has no huge pages of {page} bytes: /sys/kernel/mm/hugepages has a folder for \
         each size"
    )]
    NoHugePages {
        /// Bytes of a huge page.
        page: u64,
        /// What the kernel says.
        source: io::Error,
    },
    /// There are not enough huge pages.
    #[error(
        "cannot have {size} bytes in huge pages: {count} free ones of {} KiB are needed, see \
         /sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages; to set more aside, write their \
         number to nr_hugepages there",
        .page >> 10,
        .page >> 10
    )]
    HugePages {
        /// Bytes wanted.
        size: u64,
        /// Bytes of a huge page.
        page: u64,
        /// Pages wanted.
        count: u64,
        /// What the kernel says.
        source: io::Error,
    },
    /// The handler for missing pages cannot be installed.
    #[error("cannot install a handler for SIGBUS")]
    Handler(#[source] io::Error),
    /// The memory cannot be mapped.
    #[error("cannot map {size} bytes")]
    Map {
        /// Bytes wanted.
        size: u64,
        /// What the kernel says.
        source: MmapRegionError,
    },
}

/// Why a storage could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The range does not lie within the capacity.
    #[error("{length} bytes at offset {offset} lie outside the storage of {capacity} bytes")]
    OutOfRange {
        /// First byte of the range.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Size of the storage in bytes.
        capacity: u64,
    },
    /// What lies below has no space left.
    #[error("no space left below the storage")]
    NoSpace(#[source] io::Error),
    /// What lies below failed.
    #[error("the storage failed")]
    Io(#[source] io::Error),
}

/// Kinds of [`StorageError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// [`StorageError::OutOfRange`]
    OutOfRange,
    /// [`StorageError::NoSpace`]
    NoSpace,
    /// [`StorageError::Io`]
    Io,
}

impl StorageError {
    /// Which kind of error it is.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::NoSpace(_) => ErrorKind::NoSpace,
            Self::Io(_) => ErrorKind::Io,
        }
    }

    /// The same error for another request that failed for the same reason.
    pub fn duplicate(&self) -> Self {
        let same = |error: &io::Error| match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(error.kind(), with_causes(error)),
        };
        match self {
            Self::OutOfRange {
                offset,
                length,
                capacity,
            } => Self::OutOfRange {
                offset: *offset,
                length: *length,
                capacity: *capacity,
            },
            Self::NoSpace(error) => Self::NoSpace(same(error)),
            Self::Io(error) => Self::Io(same(error)),
        }
    }
}

impl From<io::Error> for StorageError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(error),
            _ => Self::Io(error),
        }
    }
}

/// An error with its causes, for people.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Why a storage cannot be given another size.
#[derive(Debug, thiserror::Error)]
#[error("cannot resize the storage to {capacity} bytes")]
pub struct ResizeError {
    /// Bytes wanted.
    pub capacity: u64,
    /// What is in the way.
    pub source: Box<dyn Error + Send + Sync>,
}
