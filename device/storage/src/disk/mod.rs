// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A disk: operations that a ring executes on a thread of its own, in any order.
//!
//! | module | holds |
//! |---|---|
//! | `on_disk` | a storage that is a disk and its size |
//! | `face` | the asynchronous face, for threads that submit |
//! | `thread` | the thread of the ring, and the way to it |
//! | `scheduler` | from operations of the storage to those of the ring |
//! | `ring` | what executes these, as a trait |
//! | `wake` | what wakes the thread while it waits in the kernel |
//!
//! One thread has the ring. Others give it operations by a queue under a lock that nobody
//! holds for long, and it calls whoever waits for the end of one. So no thread but this waits
//! for a disk, not even where the kernel executes a part of a submission at once.

mod face;
mod on_disk;
pub(crate) mod ring;
mod scheduler;
#[cfg(test)]
mod tests;
mod thread;
pub(crate) mod wake;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use vm_memory::VolatileSlice;

pub(crate) use self::on_disk::OnDisk;

use self::face::Face;
use self::ring::{Ring, Waker};
use self::scheduler::Scheduler;
use self::thread::{Inbox, Message};
use crate::asynchronous::{AsyncStorage, Completed, Operation};
use crate::buffer::{Buffer, Buffers};
use crate::error::StorageError;
use crate::extent::{Extent, Owner};
use crate::failure::Failure;

/// Most memory of the buffers, in bytes: some hundred requests of 1 MiB.
const BUFFER_BYTES: usize = 128 << 20;

/// Bytes that the direct face transfers at once.
const CHUNK: u64 = 4 << 20;

/// Whose operations those of the direct face are. Nobody cancels them.
const DIRECT: Owner = Owner(u32::MAX);

/// What a disk is like.
#[derive(Debug)]
pub(crate) struct Description {
    /// Name of the thread.
    pub(crate) thread: &'static str,
    /// Of the file or server, for messages.
    pub(crate) name: String,
    /// Offsets and lengths of the ring's operations are multiples of this, a power of two, in
    /// bytes.
    pub(crate) granularity: u64,
    /// Addresses in memory are multiples of this, a power of two, in bytes.
    pub(crate) align: usize,
    /// Bytes of the storage, a multiple of the granularity.
    pub(crate) capacity: u64,
}

/// A ring with its thread, and the operations of a storage.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Held while the size changes.
    resizing: Mutex<()>,
    face: Arc<Face>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    /// Starts the thread. `make` makes the ring on that thread, which it belongs to.
    pub(crate) fn start<R: Ring>(
        description: Description,
        make: impl FnOnce() -> io::Result<(R, Waker)> + Send + 'static,
    ) -> io::Result<Self> {
        let Description {
            thread,
            name,
            granularity,
            align,
            capacity,
        } = description;
        let failure = Arc::<OnceLock<Failure>>::default();
        let bytes = Arc::new(AtomicU64::new(capacity));
        let face = |waker| Face {
            granularity,
            capacity: Arc::clone(&bytes),
            buffers: Buffers::new(granularity, align, BUFFER_BYTES),
            inbox: Inbox::new(waker),
            failure: Arc::clone(&failure),
        };
        let failed = Arc::clone(&failure);
        let scheduler = Scheduler::new(name, granularity, align, Arc::clone(&bytes), failed);
        let (made, wait_made) = channel();
        let (face_sender, wait_face) = channel::<Arc<Face>>();
        let thread = Builder::new().name(thread.into()).spawn(move || {
            let ring = match make() {
                Ok((ring, waker)) => {
                    let _ = made.send(Ok(waker));
                    ring
                }
                Err(error) => {
                    let _ = made.send(Err(error));
                    return;
                }
            };
            if let Ok(face) = wait_face.recv() {
                thread::run(ring, scheduler, &face.inbox, &face.failure);
            }
        })?;
        let waker = match wait_made.recv() {
            Ok(made) => made?,
            Err(_) => return Err(io::Error::other("its thread has panicked")),
        };
        let face = Arc::new(face(waker));
        // It waits for this.
        let _ = face_sender.send(Arc::clone(&face));
        Ok(Self {
            resizing: Mutex::default(),
            face,
            thread: Some(thread),
        })
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.face.capacity.load(Ordering::Relaxed)
    }

    /// Held while the size changes.
    fn resizing(&self) -> MutexGuard<'_, ()> {
        // Protects nothing that could be left half done.
        self.resizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the disk another size, which the file or server has.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.face.capacity.store(capacity, Ordering::Relaxed);
    }

    /// Why it has failed for good.
    pub(crate) fn failure(&self) -> &OnceLock<Failure> {
        &self.face.failure
    }

    /// The asynchronous face.
    pub(crate) fn asynchronous(&self) -> Arc<dyn AsyncStorage> {
        Arc::clone(&self.face) as Arc<dyn AsyncStorage>
    }

    /// How many messages the thread has not taken.
    #[cfg(test)]
    pub(crate) fn messages(&self) -> usize {
        self.face.inbox.state().messages.len()
    }

    /// The extents of the last discards that the thread has not taken, the last one first.
    #[cfg(test)]
    pub(crate) fn last_discards(&self) -> Vec<Extent> {
        let state = self.face.inbox.state();
        let discard = |message: &Message| match message {
            Message::Submit(submitted) => match submitted.operation {
                Operation::Discard(extent) => Some(extent),
                _ => None,
            },
            _ => None,
        };
        state.messages.iter().rev().map_while(discard).collect()
    }

    /// Executes an operation and waits for its end.
    fn execute(&self, operation: Operation) -> Result<Option<Buffer>, StorageError> {
        let (sender, ended) = channel();
        self.face.submit(
            DIRECT,
            operation,
            Box::new(move |completed| {
                // Whoever asked waits.
                let _ = sender.send(completed);
            }),
        );
        let Completed { result, buffer } = ended
            .recv()
            .map_err(|_| io::Error::other("the operation was dropped"))?;
        result.map(|()| buffer)
    }

    /// The extent in pieces that the direct face transfers at once.
    fn pieces(
        &self,
        offset: u64,
        length: u64,
    ) -> Result<impl Iterator<Item = Extent>, StorageError> {
        self.face.check(Extent { offset, length })?;
        Ok((0..length.div_ceil(CHUNK)).map(move |index| Extent {
            offset: offset + index * CHUNK,
            length: CHUNK.min(length - index * CHUNK),
        }))
    }

    pub(crate) fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        let mut rest = target;
        for extent in self.pieces(offset, target.len() as u64)? {
            let buffer = self.face.buffers.unlimited(extent);
            let buffer = self.execute(Operation::Read(buffer))?;
            let data = buffer.as_ref().map_or(&[][..], Buffer::data);
            rest.copy_from(data);
            rest = rest.offset(data.len()).map_err(io::Error::other)?;
        }
        Ok(())
    }

    pub(crate) fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        let mut rest = source;
        for extent in self.pieces(offset, source.len() as u64)? {
            let mut buffer = self.face.buffers.unlimited(extent);
            rest.copy_to(buffer.data_mut());
            self.execute(Operation::Write(buffer))?;
            rest = rest
                .offset(extent.length as usize)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    pub(crate) fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.execute(Operation::Discard(Extent { offset, length }))
            .map(drop)
    }

    pub(crate) fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.execute(Operation::WriteZeroes(Extent { offset, length }))
            .map(drop)
    }

    pub(crate) fn flush(&self) -> Result<(), StorageError> {
        self.execute(Operation::Flush).map(drop)
    }

    pub(crate) fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.face.check(Extent { offset, length })?;
        self.flush()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A thread that has ended needs to be told nothing.
        let _ = self.face.inbox.post(Message::End);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by its thread.
            let _ = thread.join();
        }
    }
}
