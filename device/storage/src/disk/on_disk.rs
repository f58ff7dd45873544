// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A storage that is a disk and its size.

use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::Disk;
use crate::asynchronous::AsyncStorage;
use crate::error::{ResizeError, StorageError};
use crate::failure::{Failure, StorageFailure};
use crate::mapping::check_size;
use crate::storage::{Mappable, Storage};

/// A storage whose operations are those of a [`Disk`]. Only the way to another size is its own.
///
/// It cannot be mapped: what a mapping of a file shows is the page cache, which direct I/O goes
/// around, and a server has no mapping.
pub(crate) trait OnDisk: Debug + Send + Sync {
    /// The disk.
    fn disk(&self) -> &Disk;

    /// Makes room for `capacity` bytes, a size that a storage can have, as of [`Storage::resize`]. The
    /// disk has its new size after that. No other call does this meanwhile.
    ///
    /// # Errors
    ///
    /// Where there is no room, or the storage has failed: then it keeps its size.
    fn make_room(&self, capacity: u64) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl<T: OnDisk> Storage for T {
    fn capacity(&self) -> u64 {
        self.disk().capacity()
    }

    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        let _resizing = self.disk().resizing();
        let resize = || {
            check_size(capacity)?;
            self.make_room(capacity)
        };
        resize().map_err(|source| ResizeError { capacity, source })?;
        self.disk().set_capacity(capacity);
        Ok(())
    }

    fn failure(&self) -> Option<StorageFailure> {
        self.disk().failure().get().map(Failure::report)
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.disk().read(offset, target)
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.disk().write(offset, source)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.disk().discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.disk().write_zeroes(offset, length)
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.disk().flush()
    }

    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.disk().flush_range(offset, length)
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        None
    }

    fn asynchronous(&self) -> Option<Arc<dyn AsyncStorage>> {
        Some(self.disk().asynchronous())
    }
}
