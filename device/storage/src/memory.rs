// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Anonymous memory.

use std::fs::File;
use std::io;

use crate::error::ResizeError;
use crate::error::StorageError;
use crate::storage::Mappable;
use crate::storage::Storage;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::VolatileSlice;

use crate::error::OpenError;
use crate::failure::Failure;
use crate::mapping::{Mapping, whole_pages};

/// Device memory that lives as long as the process (and its mappings in the
/// virtual machine monitor): a memfd of whole pages, all zero at first, which is
/// sealed against shrinking, so that nobody who gets the descriptor can cut it
/// off below the mapping.
#[derive(Debug)]
pub struct MemoryStorage {
    mapping: Mapping,
}

impl MemoryStorage {
    /// `capacity` bytes of zeros. Host memory is taken as it is first written.
    pub fn new(capacity: u64) -> Result<Self, OpenError> {
        let size = whole_pages(capacity)
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or(OpenError::Size(capacity))?;
        let file = sealed_memfd(size).map_err(|source| OpenError::Memory { size, source })?;
        Self::adopt(file, capacity)
    }

    /// The first `capacity` bytes of the memory that another process has made, and has given to
    /// this one ([`Storage::mappable`]).
    pub fn adopt(file: File, capacity: u64) -> Result<Self, OpenError> {
        let mapping = Mapping::new(file, "the device memory".into(), capacity)?;
        Ok(Self { mapping })
    }
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
            let size = whole_pages(capacity).ok_or(OpenError::Size(capacity))?;
            if size > before.length {
                ftruncate(before.file, size).map_err(|errno| memory_error(errno.into()))?;
            }
            Ok(())
        })
    }

    fn failure(&self) -> Option<String> {
        self.mapping.failure().map(Failure::chain)
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, target.len() as u64)?;
        self.mapping.read(&range, target)
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, source.len() as u64)?;
        self.mapping.write(&range, source)
    }

    /// Gives whole pages back to the host.
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, length)?;
        match self.mapping.punch(&range)? {
            true => Ok(()),
            false => self.mapping.zero(&range),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, length)?;
        self.mapping.zero(&range)
    }

    /// Nothing to do: this memory is as durable as it will ever be.
    fn flush(&self) -> Result<(), StorageError> {
        self.mapping.check()
    }

    fn flush_waits(&self) -> bool {
        false
    }

    fn flush_range(&self, _offset: u64, _length: u64) -> Result<(), StorageError> {
        self.mapping.check()
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        self.mapping.mappable()
    }
}
