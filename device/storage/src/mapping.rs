// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A file mapped shared, and copies from and to it.

use std::error::Error;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ringbar_model::StorageError;
use ringbar_model::storage::{Mappable, ResizeError};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{MsyncFlags, msync};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::error::OpenError;

/// What ranges are zeroed with.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Rounds up to a whole number of pages; `None` on overflow.
pub fn whole_pages(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(rustix::param::page_size() as u64)
}

/// The first `capacity` bytes of a file, mapped shared. The number can change.
///
/// # Invariants
///
/// The file is at least `capacity` bytes long for as long as nobody truncates
/// it; whoever constructs a mapping prevents that as well as the kind of file
/// allows, because touching a page beyond the end of the file is fatal.
#[derive(Debug)]
pub struct Mapping {
    file: Arc<File>,
    mapped: ArcSwap<Mapped>,
    /// Held while the size changes.
    resizing: Mutex<()>,
}

/// A mapping at one size.
#[derive(Debug)]
struct Mapped {
    /// At least `capacity` bytes.
    region: Arc<MmapRegion>,
    capacity: u64,
}

impl Mapping {
    /// Maps the first `capacity` bytes of `file`.
    pub fn new(file: File, capacity: u64) -> Result<Self, OpenError> {
        let file = Arc::new(file);
        Ok(Self {
            mapped: ArcSwap::from_pointee(Mapped::new(&file, capacity)?),
            file,
            resizing: Mutex::new(()),
        })
    }

    /// Number of bytes.
    pub fn capacity(&self) -> u64 {
        self.mapped.load().capacity
    }

    /// Maps another number of bytes, after `extend` has made the file, whose
    /// length it is given, as long as it must be.
    pub fn resize(
        &self,
        capacity: u64,
        extend: impl FnOnce(&File, u64) -> Result<(), OpenError>,
    ) -> Result<(), ResizeError> {
        // Protects nothing that could be left half done.
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let prepare = || -> Result<Mapped, Box<dyn Error + Send + Sync>> {
            check(capacity)?;
            extend(&self.file, self.file.metadata()?.len())?;
            let old = self.mapped.load();
            Ok(if capacity as usize <= old.region.size() {
                Mapped {
                    region: Arc::clone(&old.region),
                    capacity,
                }
            } else {
                Mapped::new(&self.file, capacity)?
            })
        };
        let mapped = prepare().map_err(|source| ResizeError { capacity, source })?;
        // Who copies now holds on to the old mapping until it is done.
        self.mapped.store(Arc::new(mapped));
        Ok(())
    }

    /// The file below.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// For mapping the same bytes elsewhere.
    pub fn mappable(&self) -> Mappable<'_> {
        Mappable {
            file: &self.file,
            offset: 0,
        }
    }

    /// Copies the bytes from `offset` on to `target`.
    pub fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.mapped
            .load()
            .slice(offset, target.len() as u64)?
            .copy_to_volatile_slice(target);
        Ok(())
    }

    /// Copies `source` to the bytes from `offset` on.
    pub fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        let mapped = self.mapped.load();
        source.copy_to_volatile_slice(mapped.slice(offset, source.len() as u64)?);
        Ok(())
    }

    /// Stores 0 in a range.
    pub fn zero(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let mapped = self.mapped.load();
        let slice = mapped.slice(offset, length)?;
        let mut at = 0;
        while at < slice.len() {
            let piece = ZEROS.len().min(slice.len() - at);
            slice
                .write_slice(&ZEROS[..piece], at)
                .map_err(io::Error::other)?;
            at += piece;
        }
        Ok(())
    }

    /// Has the file system do something to the space of a range (`fallocate(2)`,
    /// always without a change of the file's length). Mappings of the file see
    /// the result. Returns whether the file system can do this; if not, nothing
    /// has happened.
    pub fn allocate(
        &self,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<bool, StorageError> {
        self.mapped.load().slice(offset, length)?;
        if length == 0 {
            return Ok(true);
        }
        let mode = mode | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(&self.file, mode, offset, length)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    /// Gives the space of a range back, down to the blocks of the file system,
    /// which zeroes the rest. As [`Self::allocate`] otherwise.
    pub fn punch(&self, offset: u64, length: u64) -> Result<bool, StorageError> {
        self.allocate(FallocateFlags::PUNCH_HOLE, offset, length)
    }

    /// Writes a range back to the file and waits until it is there.
    pub fn sync_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        if length == 0 {
            return Ok(());
        }
        let page = rustix::param::page_size() as u64;
        let start = offset - offset % page;
        let mapped = self.mapped.load();
        let slice = mapped.slice(start, offset - start + length)?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the range lies within the mapping that `slice` borrows, it
        // starts at a page boundary of it, and MS_SYNC changes no memory.
        unsafe { msync(guard.as_ptr().cast(), slice.len(), MsyncFlags::SYNC) }
            .map_err(io::Error::from)?;
        Ok(())
    }
}

/// `OpenError::Size` for what is no size of a file, or of a mapping.
fn check(capacity: u64) -> Result<usize, OpenError> {
    usize::try_from(capacity)
        .ok()
        .filter(|_| capacity != 0 && capacity <= i64::MAX as u64)
        .ok_or(OpenError::Size(capacity))
}

impl Mapped {
    fn new(file: &Arc<File>, capacity: u64) -> Result<Self, OpenError> {
        let size = check(capacity)?;
        let region = MmapRegion::from_file(FileOffset::from_arc(Arc::clone(file), 0), size)
            .map_err(|source| OpenError::Map {
                size: capacity,
                source,
            })?;
        Ok(Self {
            region: Arc::new(region),
            capacity,
        })
    }

    fn slice(&self, offset: u64, length: u64) -> Result<VolatileSlice<'_>, StorageError> {
        let outside = || StorageError::OutOfRange {
            offset,
            length,
            capacity: self.capacity,
        };
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.capacity)
        {
            return Err(outside());
        }
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let count = usize::try_from(length).map_err(|_| outside())?;
        self.region.get_slice(start, count).map_err(|_| outside())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_rounded_up() {
        let page = rustix::param::page_size() as u64;
        assert_eq!(whole_pages(0), Some(0));
        assert_eq!(whole_pages(1), Some(page));
        assert_eq!(whole_pages(page), Some(page));
        assert_eq!(whole_pages(page + 1), Some(2 * page));
        assert_eq!(whole_pages(u64::MAX), None);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 1 << 63, u64::MAX] {
            let file = tempfile::tempfile().unwrap();
            assert!(matches!(
                Mapping::new(file, size),
                Err(OpenError::Size(refused)) if refused == size
            ));
        }
    }
}
