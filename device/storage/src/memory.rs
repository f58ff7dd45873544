// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Anonymous memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::ResizeError;
use crate::error::StorageError;
use crate::storage::Mappable;
use crate::storage::Storage;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::{Errno, retry_on_intr};
use vm_memory::VolatileSlice;

use crate::error::OpenError;
use crate::failure::{Failure, StorageFailure};
use crate::mapping::{Mapping, check_size, whole_pages};

/// Device memory that lives as long as the process (and its mappings in the
/// virtual machine monitor): a memfd of whole pages, all zero at first, which is
/// sealed against shrinking, so that nobody who gets the descriptor can cut it
/// off below the mapping.
///
/// # Huge pages
///
/// [`Self::with_huge_pages`] takes pages that the system has set aside (hugetlb). All of them are
/// allocated at once, and stay until the end, also where the driver discards: another process
/// could take one that was given back, and the next access would kill whoever makes it, the
/// virtual machine monitor included. The size is a number of whole pages, because whoever maps the
/// memory, here or in the monitor, can neither map nor unmap a part of one.
#[derive(Debug)]
pub struct MemoryStorage {
    mapping: Mapping,
    /// Bytes of a huge page.
    huge_page: Option<u64>,
    /// Why the memory was lost in another process.
    adopted: Option<Failure>,
}

impl MemoryStorage {
    /// `capacity` bytes of zeros. Host memory is taken as it is first written.
    pub fn new(capacity: u64) -> Result<Self, OpenError> {
        let size = whole_pages(capacity)
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or(OpenError::Size(capacity))?;
        let file = sealed_memfd(size).map_err(|source| OpenError::Memory { size, source })?;
        Self::adopt(file, capacity, None, None)
    }

    /// The first `capacity` bytes of the memory that another process has made, and has given to
    /// this one ([`Storage::mappable`]). `huge_page` is the size of its pages where it was made
    /// by [`Self::with_huge_pages`]. The `failure` of the storage in the other process is one in
    /// this as well: what was written there may be lost, so nothing can be written here, and no
    /// flush ends well.
    pub fn adopt(
        file: File,
        capacity: u64,
        huge_page: Option<u64>,
        failure: Option<StorageFailure>,
    ) -> Result<Self, OpenError> {
        let mapping = Mapping::new(file, "the device memory".into(), capacity)?;
        Ok(Self {
            mapping,
            huge_page,
            adopted: failure.map(Failure::from),
        })
    }

    /// # Errors
    ///
    /// Where the memory is lost, here or in another process.
    fn check_writable(&self) -> Result<(), StorageError> {
        match &self.adopted {
            None => self.mapping.check(),
            Some(failure) => Err(failure.error()),
        }
    }

    /// `capacity` bytes of zeros in huge pages of `page` bytes, a power of two, for example 2 MiB.
    pub fn with_huge_pages(capacity: u64, page: u64) -> Result<Self, OpenError> {
        check_size(capacity)?;
        check_huge_pages(capacity, page)?;
        let file = huge_memfd(page).and_then(|file| {
            allocate_huge_pages(&file, 0, capacity)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
            Ok(file)
        });
        let file = file.map_err(|errno| huge_pages_error(capacity, page, errno))?;
        Self::adopt(File::from(file), capacity, Some(page), None)
    }
}

/// `OpenError::NoHugePages` for a page that is no huge one, which the kernel would take for a request
/// for its default size, and `OpenError::HugePageSize` for a size that is no number of them.
fn check_huge_pages(size: u64, page: u64) -> Result<(), OpenError> {
    if !page.is_power_of_two() || page <= rustix::param::page_size() as u64 {
        let source = Errno::INVAL.into();
        return Err(OpenError::NoHugePages { page, source });
    }
    match size.is_multiple_of(page) {
        true => Ok(()),
        false => Err(OpenError::HugePageSize { size, page }),
    }
}

fn huge_pages_error(size: u64, page: u64, errno: Errno) -> OpenError {
    let source = errno.into();
    match errno {
        // Memory without such pages at all.
        Errno::NODEV | Errno::INVAL | Errno::NOSYS => OpenError::NoHugePages { page, source },
        _ => OpenError::HugePages {
            size,
            page,
            count: size / page,
            source,
        },
    }
}

fn huge_memfd(page: u64) -> rustix::io::Result<OwnedFd> {
    // The kernel has the size as a logarithm in the highest bits (`MFD_HUGE_SHIFT`).
    let size = MemfdFlags::from_bits_retain(page.trailing_zeros() << 26);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    memfd_create("ringbar-device-memory", flags | size)
}

/// Allocates the pages of the bytes from `start` to `end` beyond the end of the file, and makes the
/// file as long as that, or does neither.
///
/// The file is longer only once it has all its pages: a signal that ends the allocation early does
/// not keep `fallocate(2)` from making the file longer (`hugetlbfs_fallocate` of the kernel).
fn allocate_huge_pages(file: impl AsFd, start: u64, end: u64) -> rustix::io::Result<()> {
    let length = end - start;
    let keep_size = FallocateFlags::KEEP_SIZE;
    let allocated = retry_on_intr(|| fallocate(&file, keep_size, start, length));
    let grown = allocated.and_then(|()| ftruncate(&file, end));
    grown.inspect_err(|_| {
        let give_back = FallocateFlags::PUNCH_HOLE | keep_size;
        // Those that it has already; they are beyond the end.
        let _ = fallocate(&file, give_back, start, length);
    })
}

fn sealed_memfd(size: u64) -> io::Result<File> {
    let file = memfd_create(
        "ringbar-device-memory",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    ftruncate(&file, size)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(File::from(file))
}

impl Storage for MemoryStorage {
    fn capacity(&self) -> u64 {
        self.mapping.capacity()
    }

    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        self.mapping.resize(capacity, |before| {
            let memory_error = |source| OpenError::Memory {
                size: capacity,
                source,
            };
            if let Some(page) = self.huge_page {
                check_huge_pages(capacity, page)?;
                if capacity > before.length {
                    allocate_huge_pages(before.file, before.length, capacity)
                        .map_err(|errno| huge_pages_error(capacity, page, errno))?;
                }
                return Ok(());
            }
            let size = whole_pages(capacity).ok_or(OpenError::Size(capacity))?;
            if size > before.length {
                ftruncate(before.file, size).map_err(|errno| memory_error(errno.into()))?;
            }
            Ok(())
        })
    }

    fn failure(&self) -> Option<StorageFailure> {
        let failure = self.adopted.as_ref().or_else(|| self.mapping.failure());
        failure.map(Failure::report)
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, target.len() as u64)?;
        self.mapping.read(&range, target)
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, source.len() as u64)?;
        self.check_writable()?;
        self.mapping.write(&range, source)
    }

    /// Gives whole pages back to the host, but for huge ones.
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, length)?;
        self.check_writable()?;
        if self.huge_page.is_some() {
            return self.mapping.zero(&range);
        }
        match self.mapping.punch(&range)? {
            true => Ok(()),
            false => self.mapping.zero(&range),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, length)?;
        self.check_writable()?;
        self.mapping.zero(&range)
    }

    /// Nothing to do: this memory is as durable as it will ever be.
    fn flush(&self) -> Result<(), StorageError> {
        self.check_writable()
    }

    fn flush_waits(&self) -> bool {
        false
    }

    fn flush_range(&self, _offset: u64, _length: u64) -> Result<(), StorageError> {
        self.check_writable()
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        self.mapping.mappable()
    }
}
