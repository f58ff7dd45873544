// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A file mapped shared, and copies from and to it.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::ResizeError;
use crate::error::StorageError;
use crate::storage::Mappable;
use arc_swap::{ArcSwap, Guard};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{MsyncFlags, msync};
use tracing::error;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::error::OpenError;
use crate::failure::Failure;
use crate::guard::{Handler, Lost};

/// What ranges are zeroed with.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Rounds up to a whole number of pages; `None` on overflow.
pub fn whole_pages(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(rustix::param::page_size() as u64)
}

/// The first `capacity` bytes of a file, mapped shared. The number can change.
///
/// The file should stay at least `capacity` bytes long, with all blocks that the file
/// system needs; whoever constructs a mapping prevents anything else as well as the
/// kind of file allows. Where pages are missing all the same, the memory is lost: the
/// operation that meets that and all later ones fail.
#[derive(Debug)]
pub struct Mapping {
    file: Arc<File>,
    /// What it is, for messages.
    name: String,
    mapped: ArcSwap<Mapped>,
    /// Held while the size changes.
    resizing: Mutex<()>,
    handler: Handler,
    lost: Lost,
    /// Why, once somebody has asked.
    failure: OnceLock<Failure>,
}

/// A mapping at one size.
#[derive(Debug)]
struct Mapped {
    /// At least `capacity` bytes.
    region: Arc<MmapRegion>,
    capacity: u64,
}

/// What a file is like before its mapping changes its size.
#[derive(Debug)]
pub struct Before<'a> {
    /// The file.
    pub file: &'a File,
    /// Its length in bytes.
    pub length: u64,
    /// How many of these are mapped.
    pub capacity: u64,
}

impl Mapping {
    /// Maps the first `capacity` bytes of `file`, which messages call `name`.
    pub fn new(file: File, name: String, capacity: u64) -> Result<Self, OpenError> {
        let handler = Handler::install().map_err(OpenError::Handler)?;
        let file = Arc::new(file);
        Ok(Self {
            handler,
            mapped: ArcSwap::from_pointee(Mapped::new(&file, capacity)?),
            file,
            name,
            resizing: Mutex::new(()),
            lost: Lost::default(),
            failure: OnceLock::new(),
        })
    }

    /// Number of bytes.
    pub fn capacity(&self) -> u64 {
        self.mapped.load().capacity
    }

    /// Maps another number of bytes, after `extend` has made the file as long as it must
    /// be.
    pub fn resize(
        &self,
        capacity: u64,
        extend: impl FnOnce(&Before<'_>) -> Result<(), OpenError>,
    ) -> Result<(), ResizeError> {
        // Protects nothing that could be left half done.
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let prepare = || -> Result<Mapped, Box<dyn Error + Send + Sync>> {
            check_size(capacity)?;
            self.check_intact()?;
            let old = self.mapped.load();
            extend(&Before {
                file: &self.file,
                length: self.file.metadata()?.len(),
                capacity: old.capacity,
            })?;
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

    /// For mapping the same bytes elsewhere, unless they are lost.
    pub fn mappable(&self) -> Option<Mappable<'_>> {
        (!self.lost.get()).then_some(Mappable {
            file: &self.file,
            offset: 0,
        })
    }

    /// Why the memory is lost, if it is.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.lost
            .get()
            .then(|| self.failure.get_or_init(|| self.diagnose()))
    }

    /// # Errors
    ///
    /// Where the memory is lost.
    pub fn check(&self) -> Result<(), StorageError> {
        match self.failure() {
            None => Ok(()),
            Some(failure) => Err(failure.error()),
        }
    }

    /// As [`Self::check`], and finds out whether the file has become too short meanwhile.
    /// For operations that do not touch the memory: those would end well.
    pub fn check_intact(&self) -> Result<(), StorageError> {
        if self.file.metadata()?.len() < self.capacity() {
            self.lost.set();
        }
        self.check()
    }

    /// Finds out why the memory is lost and says so in the log. Called once.
    fn diagnose(&self) -> Failure {
        let name = &self.name;
        let failure = match self.file.metadata() {
            Ok(metadata) if metadata.len() < self.capacity() => Failure::new(
                format!(
                    "{name} was truncated to {} bytes by another program, and its memory is lost",
                    metadata.len()
                ),
                None,
            ),
            Ok(_) => Failure::new(
                format!(
                    "pages of {name} are missing: the disk cannot be read, or the file system \
                     has no space for them"
                ),
                None,
            ),
            Err(error) => Failure::new(format!("pages of {name} are missing"), Some(error)),
        };
        error!(
            "{}: the storage fails until it is opened anew",
            failure.chain()
        );
        failure
    }

    /// A range that is within the mapping, and stays mapped as long as the result.
    ///
    /// # Errors
    ///
    /// [`StorageError::OutOfRange`] for what does not lie within the capacity.
    pub fn range(&self, offset: u64, length: u64) -> Result<Range, StorageError> {
        let mapped = self.mapped.load();
        mapped.slice(offset, length)?;
        // INVARIANT: The mapping has such a slice.
        Ok(Range {
            mapped,
            offset,
            length,
        })
    }

    /// Accesses a range of the mapping.
    fn access(
        &self,
        range: &Range,
        access: impl FnOnce(VolatileSlice<'_>),
    ) -> Result<(), StorageError> {
        self.check()?;
        let slice = range.slice()?;
        let region = &range.mapped.region;
        self.handler.access(region, &self.lost, || access(slice));
        self.check()
    }

    /// Copies a range to `target`, which is as long.
    pub fn read(&self, range: &Range, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.access(range, |slice| slice.copy_to_volatile_slice(target))
    }

    /// Copies `source`, which is as long, to a range.
    pub fn write(&self, range: &Range, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.access(range, |slice| source.copy_to_volatile_slice(slice))
    }

    /// Stores 0 in a range.
    pub fn zero(&self, range: &Range) -> Result<(), StorageError> {
        self.access(range, |slice| {
            let mut rest = slice;
            while !rest.is_empty() {
                let piece = ZEROS.len().min(rest.len());
                rest.copy_from(&ZEROS[..piece]);
                // Cannot fail: the piece is a part of it.
                let Ok(after) = rest.offset(piece) else {
                    return;
                };
                rest = after;
            }
        })
    }

    /// As [`Self::read`] by system calls, which read a hole without allocating its pages.
    pub fn read_file(&self, range: &Range, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.check()?;
        let mut rest = target;
        while !rest.is_empty() {
            // Fits: within the capacity.
            let at = (range.offset + (target.len() - rest.len()) as u64) as libc::off_t;
            let guard = rest.ptr_guard_mut();
            let (start, length) = (guard.as_ptr().cast(), rest.len());
            // SAFETY: The slice is valid memory that no Rust reference is to, and the kernel
            // writes to no more than its length.
            let read = unsafe { libc::pread(self.file.as_raw_fd(), start, length, at) };
            match usize::try_from(read) {
                Ok(0) => {
                    // The file ends here.
                    self.lost.set();
                    return self.check();
                }
                Ok(count) => rest = rest.offset(count).map_err(io::Error::other)?,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    /// Has the file system do something to the space of `length` bytes of the file from
    /// `offset` on (`fallocate(2)`, always without a change of the file's length). Mappings
    /// of the file see the result. Returns whether the file system can do this; if not,
    /// nothing has happened.
    pub fn allocate(
        &self,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<bool, StorageError> {
        self.check_intact()?;
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
    pub fn punch(&self, range: &Range) -> Result<bool, StorageError> {
        self.allocate(FallocateFlags::PUNCH_HOLE, range.offset, range.length)
    }
}

/// A range of a mapping, for one operation.
///
/// # Invariants
///
/// It lies within the capacity of `mapped`.
#[derive(Debug)]
pub struct Range {
    mapped: Guard<Arc<Mapped>>,
    offset: u64,
    length: u64,
}

impl Range {
    /// Its bytes.
    fn slice(&self) -> Result<VolatileSlice<'_>, StorageError> {
        self.mapped.slice(self.offset, self.length)
    }

    /// Writes the range back to the file and waits until it is there.
    pub fn sync(&self) -> io::Result<()> {
        let page = rustix::param::page_size() as u64;
        let start = self.offset - self.offset % page;
        let slice = self
            .mapped
            .slice(start, self.offset - start + self.length)
            .map_err(io::Error::other)?;
        let guard = slice.ptr_guard_mut();
        retry_on_intr(|| {
            // SAFETY: the range lies within the mapping that `slice` borrows, it
            // starts at a page boundary of it, and MS_SYNC changes no memory.
            unsafe { msync(guard.as_ptr().cast(), slice.len(), MsyncFlags::SYNC) }
        })?;
        Ok(())
    }
}

/// `OpenError::Size` for what is no size of a file, or of a mapping.
pub(crate) fn check_size(capacity: u64) -> Result<usize, OpenError> {
    usize::try_from(capacity)
        .ok()
        .filter(|_| capacity != 0 && capacity <= i64::MAX as u64)
        .ok_or(OpenError::Size(capacity))
}

impl Mapped {
    fn new(file: &Arc<File>, capacity: u64) -> Result<Self, OpenError> {
        let size = check_size(capacity)?;
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
                Mapping::new(file, "a test".into(), size),
                Err(OpenError::Size(refused)) if refused == size
            ));
        }
    }
}
