// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why a storage cannot be opened.

use std::io;
use std::path::PathBuf;

use vm_memory::mmap::MmapRegionError;

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
