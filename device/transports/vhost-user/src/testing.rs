// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What unit tests of several modules need: a storage that a test can hold up, and a
//! queue with requests in it.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ringbar_model::storage::{Mappable, ResizeError};
use ringbar_model::{QueueRole, Storage, StorageError};
use ringbar_spec::{Opcode, RequestHeader};
use ringbar_storage::MemoryStorage;
use rustix::thread::{Pid, gettid};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap, VolatileSlice};

use crate::device::{Device, DeviceOptions};
use crate::events::PendingEvents;
use crate::queue::{Server, Shared};
use crate::ring::Ring;

type Hook = Box<dyn Fn() + Send + Sync>;

/// Memory that calls back before it flushes or changes its size.
pub(crate) struct HookedStorage {
    memory: MemoryStorage,
    pub(crate) on_flush: Hook,
    pub(crate) on_resize: Hook,
}

impl HookedStorage {
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            memory: MemoryStorage::new(capacity).unwrap(),
            on_flush: Box::new(|| ()),
            on_resize: Box::new(|| ()),
        }
    }
}

impl fmt::Debug for HookedStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

impl Storage for HookedStorage {
    fn capacity(&self) -> u64 {
        self.memory.capacity()
    }

    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        (self.on_resize)();
        self.memory.resize(capacity)
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.memory.read(offset, target)
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.memory.write(offset, source)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.memory.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.memory.write_zeroes(offset, length)
    }

    fn flush(&self) -> Result<(), StorageError> {
        (self.on_flush)();
        self.memory.flush()
    }

    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.memory.flush_range(offset, length)
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        self.memory.mappable()
    }
}

/// Number of the queue under test.
pub(crate) const QUEUE: u16 = 2;

/// An I/O queue that runs, and the guest that fills it.
pub(crate) struct TestQueue {
    pub(crate) shared: Shared,
    pub(crate) server: Server,
    pub(crate) ring: Ring,
    mem: GuestMemoryMmap,
}

impl TestQueue {
    const SIZE: u16 = 64;
    const AVAIL: u64 = 0x4000;
    const USED: u64 = 0x8000;
    const HEADER: u64 = 0x1_0000;
    const STATUS: u64 = 0x2_0000;

    /// Of a device with this storage.
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        let options = DeviceOptions {
            io_queues: 1,
            ..DeviceOptions::default()
        };
        let device = Arc::new(Device::new(storage, options).unwrap());
        let events = Arc::new(PendingEvents::new(3).unwrap());
        let server = Server::new(QUEUE, QueueRole::Io, &device);
        let shared = Shared::new(device, events).unwrap();
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let table = GuestMemoryAtomic::new(mem.clone());
        shared.memory.update(&table);
        let ring = Ring::new(table, Self::SIZE).unwrap();
        ring.set_queue_size(Self::SIZE);
        ring.set_queue_info(0, Self::AVAIL, Self::USED).unwrap();
        ring.set_queue_event_idx(true);
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        Self {
            shared,
            server,
            ring,
            mem,
        }
    }

    fn put<const N: usize>(&self, bytes: [u8; N], at: u64) {
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    fn put_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16) {
        let at = 16 * u64::from(index);
        self.put(addr.to_le_bytes(), at);
        self.put(len.to_le_bytes(), at + 8);
        self.put(flags.to_le_bytes(), at + 12);
        self.put((index + 1).to_le_bytes(), at + 14);
    }

    /// Puts `count` flushes, at most 32, into the ring, which is empty.
    pub(crate) fn put_flushes(&self, count: u16) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let header = RequestHeader::command(Opcode::Flush, 0, 0, 0).to_bytes();
        self.mem
            .write_slice(&header, GuestAddress(Self::HEADER))
            .unwrap();
        for i in 0..count {
            self.put_descriptor(2 * i, Self::HEADER, header.len() as u32, NEXT);
            self.put_descriptor(2 * i + 1, Self::STATUS + 16 * u64::from(i), 16, WRITE);
            self.put((2 * i).to_le_bytes(), Self::AVAIL + 4 + 2 * u64::from(i));
        }
        self.put(count.to_le_bytes(), Self::AVAIL + 2);
    }

    /// How many requests the device has used.
    pub(crate) fn used(&self) -> u16 {
        u16::from_le(self.mem.read_obj(GuestAddress(Self::USED + 2)).unwrap())
    }
}

/// A thread of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread(Pid);

impl Thread {
    pub(crate) fn current() -> Self {
        Self(gettid())
    }

    /// Waits until the thread sleeps, as it does when it waits for a lock.
    pub(crate) fn until_asleep(self) {
        let stat = format!("/proc/self/task/{}/stat", self.0.as_raw_nonzero());
        wait_until("the thread sleeps", || {
            fs::read_to_string(&stat).unwrap().contains(") S ")
        });
    }
}

/// Waits until `condition` holds, which must be soon.
#[track_caller]
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::yield_now();
    }
}
