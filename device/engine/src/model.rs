// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device is.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::GuestMemory;

use crate::fault::Fault;
use crate::request::{Request, Returned, Submission};

/// A request of a device.
pub type RequestOf<D> = Request<<D as DeviceModel>::Scratch, <D as DeviceModel>::Outcome>;

/// A request of a device that came back to its worker.
pub(crate) type ReturnedOf<D> = Returned<<D as DeviceModel>::Scratch, <D as DeviceModel>::Outcome>;

/// A device: it gives the requests of its queues their meaning.
///
/// All methods but [`Self::queue_count`] and [`Self::is_polled`] are called by the worker of
/// the queue they are about; different workers call them at the same time. None may wait for
/// long: a worker has several queues, and a transport that stops one waits for the call.
pub trait DeviceModel: Debug + Send + Sync + Sized + 'static {
    /// Working memory of one queue, which its worker owns.
    type Queue: Debug + Send;
    /// What the device keeps with a request, used again for the next one.
    type Scratch: Debug + Default + Send;
    /// What the answer to a request is made of.
    type Outcome: Debug + Send;

    /// Names of the operations whose latencies are kept apart; none by default.
    const OPERATIONS: &'static [&'static str] = &[];

    /// Which of [`Self::OPERATIONS`] a request is, by its index; `None` where it does not matter
    /// how long the request takes. Called before [`Self::finish`].
    fn operation(&self, _request: &RequestOf<Self>) -> Option<usize> {
        None
    }

    /// Number of queues.
    fn queue_count(&self) -> u16;

    /// Whether requests of a queue may come in quick succession, so that a worker polls it.
    /// Queues that are polled and queues that are not have workers of their own.
    fn is_polled(&self, queue: u16) -> bool;

    /// Greatest number of buffers that a request of a queue can have.
    fn max_buffers(&self, queue: u16) -> usize;

    /// Makes the working memory of a queue.
    fn queue(&self, queue: u16) -> Self::Queue;

    /// Executes a request, or begins to. Guest memory is hostile: its contents may change at
    /// any time, and addresses of buffers were not compared with it.
    fn submit<M: GuestMemory<Bitmap = ()>>(
        &self,
        queue: &mut Self::Queue,
        memory: &M,
        request: RequestOf<Self>,
    ) -> Submission<Self::Scratch, Self::Outcome>;

    /// Writes the answer of a request. Returns the length for the used ring: the number of
    /// bytes that the device has written, from the first writable one on (VIRTIO 1.3,
    /// 2.7.8.2).
    fn finish<M: GuestMemory<Bitmap = ()>>(
        &self,
        queue: &mut Self::Queue,
        memory: &M,
        request: &mut RequestOf<Self>,
        outcome: Self::Outcome,
    ) -> Result<u32, Fault>;

    /// The outcome of a request that was dropped by whoever had it: an error of the device.
    fn dropped(&self) -> Self::Outcome;

    /// A batch of requests of a queue has ended: counters can be published.
    fn batch_done(&self, _queue: &mut Self::Queue) {}

    /// A queue runs again, and is whole.
    fn queue_started(&self, _queue: u16) {}

    /// A queue does not run any more, for whatever reason. Requests of it that the device
    /// has kept are of no use: it drops them.
    fn queue_stopped(&self, _queue: u16) {}

    /// A queue is broken. Called before [`Self::queue_stopped`].
    fn queue_broken(&self, _queue: u16, _fault: Fault) {}

    /// The configuration space as it is now. For transports, at any time: never waits.
    fn config(&self) -> Vec<u8>;

    /// The driver has reset the device. For transports, when no queue runs.
    fn reset(&self) {}

    /// The memory that the device shows in the guest's address space, if any.
    fn shared_region(&self) -> Option<SharedRegion> {
        None
    }

    /// The file that holds the shared region, for a transport that maps it itself. `None` where
    /// there is none, or none that can be mapped: then the region reads as zero.
    fn shared_file(&self) -> Option<SharedFile> {
        None
    }

    /// Gives the device what it calls after each change of its configuration space, on any
    /// thread. For transports that can announce a change to the driver (VIRTIO 1.3, 2.5), before
    /// any queue starts.
    fn set_config_listener(&self, _listener: ConfigListener) {}

    /// Whether a file holds the device's own memory. Transports leave it out of guest
    /// memory: as a part of a request it would be source and target at once.
    fn owns(&self, _file: &File) -> bool {
        false
    }

    /// Gives the device what has its memory mapped. For transports, before any queue starts.
    fn set_mapper(&self, _mapper: Arc<dyn Mapper>) {}

    /// The transport has unmapped the shared region, because the device was stopped.
    fn unmapped(&self) {}
}

/// A shared memory region of a device (VIRTIO 1.3, 2.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedRegion {
    /// Size in bytes, a power of two.
    pub bytes: u64,
}

/// The file behind a [`SharedRegion`].
#[derive(Debug)]
pub struct SharedFile {
    /// The file; its pages are the shared region.
    pub file: File,
    /// Where in the file the region starts, in bytes; a page multiple.
    pub offset: u64,
    /// Number of bytes from the start of the region on that the file holds; a page multiple. The
    /// rest of the region reads as zero.
    pub length: u64,
}

/// What a device calls after a change of its configuration space. Never waits.
pub type ConfigListener = Box<dyn Fn() + Send + Sync>;

/// Called once with the result of a request to map, on any thread.
pub type Mapped = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Has a file mapped into the shared region of a device.
pub trait Mapper: Debug + Send + Sync {
    /// Asks for `length` bytes of `file` from `offset` on at the start of the region. Does
    /// not wait for the answer. `done` is dropped where there will be none.
    fn map(&self, file: File, offset: u64, length: u64, done: Mapped);
}
