// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The asynchronous face of a disk, for threads that submit.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::scheduler::Submitted;
use super::thread::{Inbox, Message};
use crate::asynchronous::{AsyncStorage, Completed, Done, Operation};
use crate::buffer::Buffers;
use crate::error::StorageError;
use crate::extent::{Extent, Owner};
use crate::failure::Failure;

/// What is shared with those who have the asynchronous face.
pub(super) struct Face {
    pub(super) granularity: u64,
    pub(super) capacity: Arc<AtomicU64>,
    pub(super) buffers: Buffers,
    pub(super) inbox: Inbox,
    pub(super) failure: Arc<OnceLock<Failure>>,
}

impl fmt::Debug for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Face")
            .field("capacity", &self.capacity)
            .field("buffers", &self.buffers)
            .finish_non_exhaustive()
    }
}

impl Face {
    /// # Errors
    ///
    /// [`StorageError::OutOfRange`] for what does not lie within the capacity.
    pub(super) fn check(&self, extent: Extent) -> Result<(), StorageError> {
        let capacity = self.capacity.load(Ordering::Relaxed);
        let Extent { offset, length } = extent;
        match offset.checked_add(length) {
            Some(end) if end <= capacity => Ok(()),
            _ => Err(StorageError::OutOfRange {
                offset,
                length,
                capacity,
            }),
        }
    }

    fn post(&self, owner: Owner, operation: Operation, done: Done) {
        let submitted = Submitted {
            owner,
            operation,
            done,
        };
        if let Err(Message::Submit(submitted)) = self.inbox.post(Message::Submit(submitted)) {
            let error = self.failure.get().map_or_else(
                || io::Error::other("the thread of the storage has ended").into(),
                Failure::error,
            );
            (submitted.done)(Completed {
                result: Err(error),
                buffer: None,
            });
        }
    }

    /// Sets an extent to 0: the whole blocks, and the parts of blocks around them.
    fn clear(&self, owner: Owner, extent: Extent, operation: fn(Extent) -> Operation, done: Done) {
        let granularity = self.granularity;
        let (start, end) = (extent.offset, extent.end());
        let first = start.next_multiple_of(granularity);
        let last = end - end % granularity;
        let between = |offset: u64, end: u64| Extent {
            offset,
            length: end - offset,
        };
        let parts = match first <= last {
            true => [
                between(start, first),
                between(first, last),
                between(last, end),
            ],
            // Within one block.
            false => [extent, Extent::default(), Extent::default()],
        };
        let join = Join::new(done);
        for part in parts.into_iter().filter(|part| part.length > 0) {
            self.post(owner, operation(part), Join::part(&join));
        }
    }
}

/// The end of an operation that has parts. It ends when this and all parts are dropped.
struct Join {
    /// Taken by the last one.
    done: Mutex<Option<Done>>,
    error: Mutex<Option<StorageError>>,
    /// Parts that ended, and parts there are.
    counts: [AtomicUsize; 2],
}

impl Join {
    fn new(done: Done) -> Arc<Self> {
        Arc::new(Self {
            done: Mutex::new(Some(done)),
            error: Mutex::default(),
            counts: Default::default(),
        })
    }

    fn part(join: &Arc<Self>) -> Done {
        let join = Arc::clone(join);
        join.counts[1].fetch_add(1, Ordering::Relaxed);
        Box::new(move |completed| {
            if let Err(error) = completed.result {
                *join.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            join.counts[0].fetch_add(1, Ordering::Relaxed);
        })
    }
}

impl Drop for Join {
    fn drop(&mut self) {
        let [ended, parts] = &mut self.counts;
        if ended.get_mut() != parts.get_mut() {
            // Cancelled.
            return;
        }
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner);
        let error = self.error.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = done.take() {
            done(Completed {
                result: error.take().map_or(Ok(()), Err),
                buffer: None,
            });
        }
    }
}

impl AsyncStorage for Face {
    fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    fn submit(&self, owner: Owner, operation: Operation, done: Done) {
        let extent = match &operation {
            Operation::Read(buffer) | Operation::Write(buffer) => buffer.extent(),
            Operation::Discard(extent) | Operation::WriteZeroes(extent) => *extent,
            Operation::Flush => Extent::default(),
        };
        if let Err(error) = self.check(extent) {
            let buffer = match operation {
                Operation::Read(buffer) | Operation::Write(buffer) => Some(buffer),
                _ => None,
            };
            let result = Err(error);
            return done(Completed { result, buffer });
        }
        match operation {
            Operation::Discard(extent) => self.clear(owner, extent, Operation::Discard, done),
            Operation::WriteZeroes(extent) => {
                self.clear(owner, extent, Operation::WriteZeroes, done);
            }
            other => self.post(owner, other, done),
        }
    }

    fn cancel(&self, owner: Owner) {
        self.buffers.cancel(owner);
        self.inbox.cancel(owner);
    }
}
