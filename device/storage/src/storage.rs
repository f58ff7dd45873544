// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The interface between device models and what holds their memory.

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::asynchronous::AsyncStorage;
use crate::error::{ResizeError, StorageError};
use crate::failure::StorageFailure;

/// The file that holds the device memory, for mapping it elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Mappable<'a> {
    /// The file; its pages are the device memory.
    pub file: &'a File,
    /// Where in the file the device memory starts, in bytes; a page multiple.
    pub offset: u64,
}

/// The bytes behind a device.
///
/// Offsets and lengths are in bytes and may have any alignment. Operations may
/// run concurrently; where two of them touch the same byte, and at least one
/// writes, the byte ends up as one of them left it.
///
/// # Failure
///
/// A storage that has lost something fails for good: what was lost is not known, so
/// an operation that ended well afterwards would promise too much. Operations then
/// end with [`StorageError::Io`] (or [`StorageError::NoSpace`], where that was the
/// reason) until the storage is opened anew, and [`Self::failure`] says why.
///
/// | what was lost | fails from then on |
/// |---|---|
/// | data that could not be written back | all but [`Self::read`] |
/// | access to the memory itself | everything |
pub trait Storage: Debug + Send + Sync {
    /// Size in bytes, at least 1 and at most `i64::MAX`. Only [`Self::resize`]
    /// changes it. Never waits.
    fn capacity(&self) -> u64;

    /// Gives the storage another size. What is added reads as 0, or where the
    /// storage was once larger, as what it held then: whatever was mappable stays
    /// so, because it may be mapped.
    ///
    /// May take long, because it may wait for a disk. Nothing else of the storage does
    /// meanwhile: the size that it has is the old one until the end.
    ///
    /// Requests in progress end as if they came before; those that reach beyond a
    /// smaller size may end with [`StorageError::OutOfRange`]. After an error
    /// nothing has changed.
    fn resize(&self, capacity: u64) -> Result<(), ResizeError>;

    /// Why the storage has failed for good; `None` as long as it has not.
    fn failure(&self) -> Option<StorageFailure> {
        None
    }

    /// Copies `target.len()` bytes from `offset` on to `target`.
    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError>;

    /// Copies `source` to the bytes from `offset` on.
    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError>;

    /// Gives up the contents of `length` bytes from `offset` on, which read as 0
    /// until something is written there. The space may be used for something
    /// else, if what lies below allows it.
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError>;

    /// Writes 0 to `length` bytes from `offset` on, and sees to it that they have
    /// space.
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError>;

    /// Makes everything durable that was written before the call, whoever wrote
    /// it and through whichever mapping.
    fn flush(&self) -> Result<(), StorageError>;

    /// Whether [`Self::flush`] and [`Self::flush_range`] may wait for a disk. Then they are
    /// better called on a thread that nothing else needs.
    fn flush_waits(&self) -> bool {
        true
    }

    /// Like [`Self::flush`], for `length` bytes from `offset` on.
    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError>;

    /// The file to map where the device memory is to be seen directly, if this
    /// storage can be mapped and has not lost its memory. Behind the capacity the
    /// file may go on with bytes that are not the device's.
    fn mappable(&self) -> Option<Mappable<'_>>;

    /// The asynchronous face, where operations wait for a disk. Those above wait for it then,
    /// and hold up whoever calls them.
    fn asynchronous(&self) -> Option<Arc<dyn AsyncStorage>> {
        None
    }
}
