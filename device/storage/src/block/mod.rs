// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A block device, or a regular file as if it were one: direct I/O by io_uring.
//!
//! | module | holds |
//! |---|---|
//! | `geometry` | what direct I/O wants of offsets and memory |
//! | `uring` | io_uring, as the ring of a disk |

mod geometry;
#[cfg(test)]
mod thread_tests;
mod uring;

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_setfl};

use self::geometry::Geometry;
use self::uring::Uring;
use crate::disk::ring::{Ring, Waker};
use crate::disk::{Description, Disk, OnDisk};
use crate::error::OpenError;
use crate::failure::{Failure, StorageFailure};
use crate::file::{Unused, allocate, lock, make_name_durable, open_or_create};
use crate::mapping::{Before, check_size};

/// Submissions that the kernel takes at once. It has up to four times as many operations.
const RING_ENTRIES: u32 = 256;

/// A block device, or a regular file, by direct I/O.
///
/// The size is a multiple of its blocks. Requests may have any offset and length: a write of a
/// part of a block reads the block first. The bytes that such a write leaves alone are written
/// again, so a disk that loses a block in the middle of a write loses them too.
///
/// It is locked as a [`crate::FileStorage`] is, and a block device is opened exclusively, so
/// that it is neither mounted nor part of another. A regular file is created, extended and gets
/// its blocks as there.
///
/// A read or write that fails is an error of its request, and nothing else. A flush that fails
/// is for good, and so is a read that finds the file cut off, see [`Storage`].
#[derive(Debug)]
pub struct BlockStorage {
    disk: Disk,
    file: Arc<File>,
    geometry: Geometry,
    path: PathBuf,
}

impl BlockStorage {
    /// Opens the block device or regular file at `path`; a regular file is created where it
    /// does not exist, for its owner only.
    ///
    /// With a `size`, a shorter regular file is extended with zeros, and of a longer file or
    /// device the first `size` bytes are used; the rest is left as it is. Without, the size is
    /// that of the file or device. A file that was created is deleted after an error.
    pub fn open(path: &Path, size: Option<u64>) -> Result<Self, OpenError> {
        Self::open_with_ready(path, size, || Ok(()))
    }

    /// As [`Self::open`]. The thread of the ring calls `ready` once it has the ring, and before
    /// it executes anything. An error of that function is one of the storage.
    pub fn open_with_ready(
        path: &Path,
        size: Option<u64>,
        ready: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, OpenError> {
        Self::open_with(path, size, |file| {
            let ring = Uring::new(file, RING_ENTRIES)?;
            ready()?;
            let waker = ring.waker();
            Ok((ring, waker))
        })
    }

    /// Opens again what another process had open with this capacity. What was discarded has no
    /// blocks still, and nothing is created. The `failure` of the storage in the other process is
    /// one in this as well.
    pub fn reopen(
        path: &Path,
        capacity: u64,
        failure: Option<StorageFailure>,
        ready: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, OpenError> {
        let storage = Self::open_after(path, Some(capacity), capacity, |file| {
            let ring = Uring::new(file, RING_ENTRIES)?;
            ready()?;
            let waker = ring.waker();
            Ok((ring, waker))
        })?;
        let length = length(&storage.file, path)?;
        let is_short = !storage.geometry.is_device && length < capacity;
        let cut = || {
            Failure::new(
                format!("{} was cut off at byte {length}", path.display()),
                None,
            )
        };
        if let Some(failure) = (failure.map(Failure::from)).or_else(|| is_short.then(cut)) {
            failure.note(storage.disk.failure());
        }
        Ok(storage)
    }

    /// With another ring, which `make` makes on the thread that has it.
    fn open_with<R: Ring>(
        path: &Path,
        size: Option<u64>,
        make: impl FnOnce(Arc<File>) -> io::Result<(R, Waker)> + Send + 'static,
    ) -> Result<Self, OpenError> {
        Self::open_after(path, size, 0, make)
    }

    /// After another process that has used the first `before` bytes.
    fn open_after<R: Ring>(
        path: &Path,
        size: Option<u64>,
        before: u64,
        make: impl FnOnce(Arc<File>) -> io::Result<(R, Waker)> + Send + 'static,
    ) -> Result<Self, OpenError> {
        if let Some(size) = size {
            check_size(size)?;
        }
        let (file, created) = open(path, size.is_some() && before == 0)?;
        lock(&file, path)?;
        // Not before: until then it could be another device's.
        let unused = Unused(created.then_some(path));

        // Not at once: a file system that cannot do this would create the file all the same.
        fcntl_setfl(&file, OFlags::DIRECT).map_err(|errno| OpenError::NoDirectIo {
            path: path.to_owned(),
            source: Some(errno.into()),
        })?;
        let geometry = Geometry::of(&file, path)?;
        let length = length(&file, path)?;
        let capacity = match size {
            Some(size) => size,
            None if length == 0 => return Err(OpenError::SizeMissing(path.to_owned())),
            None => length,
        };
        check_size(capacity)?;
        geometry.check(path, capacity)?;
        if length == 0 && !geometry.is_device {
            make_name_durable(path);
        }
        extend(&file, path, geometry, length, before, capacity)?;

        let file = Arc::new(file);
        let own = Arc::clone(&file);
        let description = Description {
            thread: "block-io",
            name: path.display().to_string(),
            granularity: geometry.granularity,
            align: geometry.align,
            capacity,
        };
        let disk =
            Disk::start(description, move || make(own)).map_err(|source| OpenError::Ring {
                path: path.to_owned(),
                source,
            })?;
        unused.keep();
        Ok(Self {
            disk,
            file,
            geometry,
            path: path.to_owned(),
        })
    }
}

/// Opens a file or block device. Returns whether the file was created for that.
fn open(path: &Path, create: bool) -> Result<(File, bool), OpenError> {
    let open_error = |source: io::Error| match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::InUse(path.to_owned()),
        Some(libc::EROFS) => OpenError::ReadOnly(path.to_owned()),
        Some(libc::ENOENT) if !create => OpenError::SizeMissing(path.to_owned()),
        _ => OpenError::Open {
            path: path.to_owned(),
            source,
        },
    };
    // `O_EXCL` is for devices: it means something else where a file is created.
    let opened = open_or_create(path, false, OFlags::EXCL.bits() as i32);
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let creates = create && opened.as_ref().is_err_and(is_missing);
    let opened = match creates {
        true => open_or_create(path, true, 0),
        false => opened,
    };
    let (file, created) = opened.map_err(open_error)?;
    let kind = file.metadata().map_err(open_error)?.file_type();
    match kind.is_file() || kind.is_block_device() {
        // It has appeared meanwhile, and is not opened exclusively.
        true if creates && kind.is_block_device() => Err(OpenError::InUse(path.to_owned())),
        true => Ok((file, created)),
        false => Err(OpenError::NotABlockDevice(path.to_owned())),
    }
}

fn length(file: &File, path: &Path) -> Result<u64, OpenError> {
    Geometry::length(file).map_err(|source| OpenError::Open {
        path: path.to_owned(),
        source,
    })
}

/// Sees to it that there are `capacity` bytes, of which `before` were in use.
fn extend(
    file: &File,
    path: &Path,
    geometry: Geometry,
    length: u64,
    before: u64,
    capacity: u64,
) -> Result<(), OpenError> {
    if geometry.is_device {
        return match capacity <= length {
            true => Ok(()),
            false => Err(OpenError::DeviceTooSmall {
                path: path.to_owned(),
                size: capacity,
                length,
            }),
        };
    }
    let before = Before {
        file,
        length,
        capacity: before,
    };
    allocate(&before, path, capacity)
}

impl OnDisk for BlockStorage {
    fn disk(&self) -> &Disk {
        &self.disk
    }

    /// A regular file grows if it has to; it is never made shorter. A block device has to be
    /// large enough.
    fn make_room(&self, capacity: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Self { file, geometry, .. } = self;
        geometry.check(&self.path, capacity)?;
        let (length, before) = (length(file, &self.path)?, self.disk.capacity());
        if !geometry.is_device && length < before {
            // A file that grows again reads as 0 where it had other bytes.
            let what = format!("{} was cut off at byte {length}", self.path.display());
            Failure::new(what, None).note(self.disk.failure());
        }
        if let Some(failure) = self.disk.failure().get() {
            return Err(failure.error().into());
        }
        extend(file, &self.path, *geometry, length, before, capacity)?;
        Ok(())
    }
}
