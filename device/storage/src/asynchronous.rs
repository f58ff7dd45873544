// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The asynchronous face of a storage: operations that wait for a disk while nobody waits for
//! them.
//!
//! An operation owns its memory, a [`Buffer`], until it has ended. So guest memory is no part
//! of an operation: whoever serves a guest copies from it before a write and to it after a
//! read. A queue that is stopped has nothing to wait for, since the kernel writes to no memory
//! of the guest, whenever the disk answers.
//!
//! What a disk still does for a queue that was stopped comes before what is submitted later:
//! operations that touch the same block, at least one of which writes, are executed in the
//! order of their submission.

use std::fmt;

use crate::buffer::{Buffer, Buffers};
use crate::error::StorageError;
use crate::extent::{Extent, Owner};

/// What a storage is asked to do.
#[derive(Debug)]
pub enum Operation {
    /// Fills the buffer with the bytes of its extent.
    Read(Buffer),
    /// Stores the buffer in its extent.
    Write(Buffer),
    /// As [`crate::Storage::discard`].
    Discard(Extent),
    /// As [`crate::Storage::write_zeroes`].
    WriteZeroes(Extent),
    /// Makes durable what was written by operations that have ended.
    Flush,
}

/// How an operation ended.
#[derive(Debug)]
pub struct Completed {
    /// Whether it was executed. Of an operation that failed, any part may have been.
    pub result: Result<(), StorageError>,
    /// That of a read or write. After a read that failed its bytes mean nothing. It is missing
    /// where the storage has lost it with the means to get it back.
    pub buffer: Option<Buffer>,
}

/// Called once when an operation has ended, on any thread. Must not block. Dropped where the
/// operation was cancelled.
pub type Done = Box<dyn FnOnce(Completed) + Send>;

/// A storage whose operations are executed while others are submitted, and end in any order.
pub trait AsyncStorage: fmt::Debug + Send + Sync {
    /// Where buffers come from.
    fn buffers(&self) -> &Buffers;

    /// Begins an operation. Never blocks, and waits for no disk.
    fn submit(&self, owner: Owner, operation: Operation, done: Done);

    /// Drops operations of an owner that have not begun, and its requests for buffers. Others
    /// end as they would.
    fn cancel(&self, owner: Owner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_an_extent() {
        for (offset, length, first, bytes) in [
            (0, 0, 0, 0),
            (512, 0, 512, 0),
            (0, 1, 0, 512),
            (511, 2, 0, 1024),
            (512, 512, 512, 512),
            (513, 511, 512, 512),
            (1, 1024, 0, 1536),
        ] {
            let expected = Extent {
                offset: first,
                length: bytes,
            };
            assert_eq!(Extent { offset, length }.blocks(512), expected);
        }
    }
}
