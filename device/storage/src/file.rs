// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A regular file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ringbar_model::storage::{Mappable, ResizeError};
use ringbar_model::{Storage, StorageError};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, fdatasync, flock, ftruncate};
use rustix::io::Errno;
use tracing::{info, warn};
use vm_memory::VolatileSlice;

use crate::error::OpenError;
use crate::mapping::Mapping;

/// Device memory in a file, mapped shared.
///
/// A store into a mapping has no way to fail gently: where the file system has
/// no block for the page, or somebody has truncated the file, the process dies
/// of `SIGBUS`. Therefore all blocks are allocated when the file is opened, and
/// the file is locked (`flock`, exclusive) against a second device. Programs
/// that ignore the lock must leave the file's size alone while it is in use.
///
/// What is discarded loses its blocks, until the storage is opened again or the
/// range is written to. Once that has happened, requests allocate the blocks
/// before they write, so that a full file system is an error of the request. A
/// store through another mapping cannot be helped like that: a driver that
/// discards and then stores through the aperture relies on the file system
/// having space. (On tmpfs, where a load takes space as well, so does one that
/// discards and then reads.)
///
/// The lock belongs to the open file, which the virtual machine monitor shares
/// once it has mapped the device memory: it ends when both are gone.
#[derive(Debug)]
pub struct FileStorage {
    mapping: Mapping,
    /// As it was opened, for messages.
    path: PathBuf,
    /// Whether blocks may be missing.
    sparse: AtomicBool,
}

impl FileStorage {
    /// Opens the file at `path`, and creates it where it does not exist.
    ///
    /// With a `size`, a shorter file is extended with zeros, and of a longer one
    /// the first `size` bytes are used; the rest is left as it is. Without, the
    /// size is that of the file. A file is never made shorter.
    pub fn open(path: &Path, size: Option<u64>) -> Result<Self, OpenError> {
        let open_error = |source| OpenError::Open {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(size.is_some())
            .truncate(false)
            .open(path)
            .map_err(|source| match (source.kind(), size) {
                (io::ErrorKind::NotFound, None) => OpenError::SizeMissing(path.to_owned()),
                _ => open_error(source),
            })?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(OpenError::NotAFile(path.to_owned()));
        }
        lock(&file, path)?;

        // The length once more: before the lock it could still change.
        let length = file.metadata().map_err(open_error)?.len();
        let capacity = match size {
            Some(size) => size,
            None if length == 0 => return Err(OpenError::SizeMissing(path.to_owned())),
            None => length,
        };
        if capacity == 0 || capacity > i64::MAX as u64 {
            return Err(OpenError::Size(capacity));
        }
        if length > capacity {
            info!(
                path = %path.display(),
                file_bytes = length,
                device_bytes = capacity,
                "the file is longer than the device: the rest stays untouched"
            );
        }
        allocate(&file, path, length, capacity)?;
        Ok(Self {
            mapping: Mapping::new(file, capacity)?,
            path: path.to_owned(),
            sparse: AtomicBool::new(false),
        })
    }

    /// Sees to it that a range has blocks. Costs a system call only where
    /// something was discarded. A file system that cannot do this was warned
    /// about when the file was opened.
    fn reserve(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        // Relaxed: of a discard at the same time either is right to come first.
        if self.sparse.load(Ordering::Relaxed) {
            self.mapping
                .allocate(FallocateFlags::empty(), offset, length)?;
        }
        Ok(())
    }
}

fn lock(file: &File, path: &Path) -> Result<(), OpenError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(OpenError::InUse(path.to_owned())),
        Err(errno) => Err(OpenError::Lock {
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}

/// Sees to it that the first `capacity` bytes exist and have blocks.
fn allocate(file: &File, path: &Path, length: u64, capacity: u64) -> Result<(), OpenError> {
    let allocate_error = |errno: Errno| OpenError::Allocate {
        path: path.to_owned(),
        size: capacity,
        source: errno.into(),
    };
    match fallocate(file, FallocateFlags::empty(), 0, capacity) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => {
            warn!(
                path = %path.display(),
                "this file system cannot allocate blocks in advance: if it fills up, \
                 the device dies"
            );
            if length < capacity {
                ftruncate(file, capacity).map_err(allocate_error)?;
            }
            Ok(())
        }
        Err(errno) => {
            // A partly allocated file keeps the length it had.
            if let Err(error) = ftruncate(file, length) {
                warn!(path = %path.display(), %error, "cannot restore the length of the file");
            }
            Err(allocate_error(errno))
        }
    }
}

impl Storage for FileStorage {
    fn capacity(&self) -> u64 {
        self.mapping.capacity()
    }

    /// The file grows if it has to. It is never made shorter.
    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        self.mapping.resize(capacity, |file, length| {
            if capacity > length {
                allocate(file, &self.path, length, capacity)?;
            }
            Ok(())
        })
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.mapping.read(offset, target)
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.reserve(offset, source.len() as u64)?;
        self.mapping.write(offset, source)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.sparse.store(true, Ordering::Relaxed);
        match self.mapping.punch(offset, length)? {
            true => Ok(()),
            // Then no blocks were ever given up, and the stores are safe.
            false => self.mapping.zero(offset, length),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let mode = FallocateFlags::ZERO_RANGE;
        if self.mapping.allocate(mode, offset, length)? {
            return Ok(());
        }
        self.reserve(offset, length)?;
        self.mapping.zero(offset, length)
    }

    /// The kernel knows which pages were stored to through any mapping, that of
    /// the virtual machine monitor included, so one `fdatasync` covers all.
    fn flush(&self) -> Result<(), StorageError> {
        fdatasync(self.mapping.file()).map_err(io::Error::from)?;
        Ok(())
    }

    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.mapping.sync_range(offset, length)
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        Some(self.mapping.mappable())
    }
}
