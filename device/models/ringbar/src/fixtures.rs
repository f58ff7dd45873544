// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What several tests of this crate use.

use std::fmt;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use ringbar_storage::{Mappable, MemoryStorage, ResizeError, Storage, StorageError};
use rustix::thread::{Pid, gettid};
use vm_memory::VolatileSlice;

type Hook = Box<dyn Fn() + Send + Sync>;

/// Memory storage that calls a hook before it flushes or changes its size.
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
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&stat).unwrap().contains(") S ") {
            assert!(Instant::now() < deadline, "the thread does not sleep");
            thread::yield_now();
        }
    }
}
