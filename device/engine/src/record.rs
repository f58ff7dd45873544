// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A record of what is in flight, in memory that outlives the process.
//!
//! A process that is killed leaves requests that it has taken out of the available ring and not
//! put into the used ring. The driver waits for them, and nothing in guest memory says which
//! they are. The record says it: whoever holds its file starts another process, which goes on
//! where the first one was. Each request is then completed exactly once, and may be executed
//! twice (see [`begin_once`](crate::Request::begin_once)).
//!
//! The record of a queue is the structure for a split virtqueue of the vhost-user specification
//! ("Inflight I/O tracking"), with used entries in batches of one:
//!
//! | step | record | guest memory |
//! |---|---|---|
//! | an entry is taken | `counter`, then `inflight` = 1 | |
//! | its request is executed | | the answer |
//! | its chain is used | `next`, then `last_batch_head` | |
//! | | | used entry, then `idx` of the used ring |
//! | | `inflight` = 0, then `used_idx` | |
//!
//! A process that ends between any two of these leaves enough: `idx` differs from `used_idx`
//! where the entry in `last_batch_head` is used already, and all other entries with `inflight`
//! are not. The index of the next available entry is the sum of `idx` and their number.
//!
//! # Runs
//!
//! A queue is started and stopped by messages, and a process can end between a message and its
//! reply. So whoever holds the file numbers the runs of each queue, from 1: it writes the number
//! ([`Record::run_offset`]) before it lets the queue start. A queue whose record has the same
//! number goes on from the record, and any other from the indices of the message.
//!
//! # Order
//!
//! All stores are releases, so none is moved before another one. A process that is killed has
//! done a prefix of its stores.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::fault::Fault;

/// Greatest number of entries of a ring that the record has room for.
const MAX_SIZE: u16 = 1024;

/// Greatest number of queues.
const MAX_QUEUES: u16 = 256;

/// Start of the queues' records; before it are the numbers of their runs.
const QUEUES: usize = 4096;

/// Bytes of the record of one queue.
const STRIDE: usize = REGION + DESC + DESC_SIZE * MAX_SIZE as usize;

/// Offsets in the record of a queue. The fields from `REGION` on are those of the specification.
const RUN: usize = 0;
const BROKEN: usize = 4;
const REGION: usize = 16;

/// Offsets from `REGION` on.
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const DESC: usize = 16;

/// Offsets in the record of a descriptor, and its size. `BEGUN` is padding in the specification.
const INFLIGHT: usize = 0;
const BEGUN: usize = 1;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const DESC_SIZE: usize = 16;

/// By their numbers in the record, less one.
const FAULTS: [Fault; 4] = [Fault::Chain, Fault::Address, Fault::NoAnswer, Fault::Ring];

/// A record of what is in flight in the queues of a device.
#[derive(Clone, Debug)]
pub struct Record(Arc<MmapRegion>);

impl Record {
    /// Creates a file for a record.
    pub fn create() -> io::Result<File> {
        let file = memfd_create(
            "ringbar-in-flight",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        ftruncate(&file, Self::bytes() as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// Maps a file that [`Self::create`] has made, in this process or another one.
    ///
    /// # Errors
    ///
    /// Where it is another file, which could become shorter than the mapping.
    pub fn open(file: File) -> io::Result<Self> {
        if !fcntl_get_seals(&file)?.contains(SealFlags::SHRINK)
            || file.metadata()?.len() < Self::bytes() as u64
        {
            return Err(io::Error::other("this is no record of requests in flight"));
        }
        let mapped = MmapRegion::from_file(FileOffset::new(file, 0), Self::bytes());
        Ok(Self(Arc::new(mapped.map_err(io::Error::other)?)))
    }

    const fn bytes() -> usize {
        QUEUES + STRIDE * MAX_QUEUES as usize
    }

    /// Where in the file the number of a queue's run is, a `u32` in the machine's byte order.
    /// `None` for a queue that the record has no room for.
    pub const fn run_offset(queue: u16) -> Option<u64> {
        match queue < MAX_QUEUES {
            true => Some(4 * queue as u64),
            false => None,
        }
    }

    /// The record of one queue; `None` where there is no room for it.
    pub(crate) fn queue(&self, queue: u16) -> Option<QueueRecord> {
        Some(QueueRecord {
            region: Arc::clone(&self.0),
            wanted: usize::try_from(Self::run_offset(queue)?).ok()?,
            at: QUEUES + STRIDE * usize::from(queue),
        })
    }
}

/// An entry that was in flight when another process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) number: u64,
    pub(crate) head: u16,
    /// The request was begun, and must not be executed twice.
    pub(crate) begun: bool,
}

/// The record of one queue.
///
/// # Invariants
///
/// `region` has [`STRIDE`] bytes from `at` on and a `u32` at `wanted`, both aligned to 4 bytes
/// at least, and the former to 8.
#[derive(Clone, Debug)]
pub(crate) struct QueueRecord {
    region: Arc<MmapRegion>,
    wanted: usize,
    at: usize,
}

impl QueueRecord {
    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        // By the invariant there is such a field.
        let loaded = self.region.as_volatile_slice().load(at, Ordering::Acquire);
        loaded.unwrap_or_default()
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        #[cfg(test)]
        kill::step();
        // As above.
        let _ = (self.region.as_volatile_slice()).store(value, at, Ordering::Release);
    }

    const fn field(&self, field: usize) -> usize {
        self.at + REGION + field
    }

    /// Where the record of a descriptor is. There is none of an index that no ring has; its
    /// request breaks the queue.
    fn desc(&self, head: u16) -> Option<usize> {
        (head < MAX_SIZE).then(|| self.field(DESC) + DESC_SIZE * usize::from(head))
    }

    /// An entry was taken out of the available ring, as number `number`.
    pub(crate) fn taken(&self, head: u16, number: u64) {
        let Some(at) = self.desc(head) else { return };
        self.store::<u64>(at + COUNTER, number);
        self.store::<u8>(at + BEGUN, 0);
        self.store::<u8>(at + INFLIGHT, 1);
    }

    /// A request is about to be executed that must not be executed twice.
    pub(crate) fn begun(&self, head: u16) {
        if let Some(at) = self.desc(head) {
            self.store::<u8>(at + BEGUN, 1);
        }
    }

    /// An entry is about to be used.
    pub(crate) fn using(&self, head: u16) {
        let Some(at) = self.desc(head) else { return };
        let last = self.load::<u16>(self.field(LAST_BATCH_HEAD));
        self.store::<u16>(at + NEXT, last);
        self.store::<u16>(self.field(LAST_BATCH_HEAD), head);
    }

    /// The entry is used, and the used ring has this index now.
    pub(crate) fn used(&self, head: u16, used_idx: u16) {
        self.forget(head);
        self.store::<u16>(self.field(USED_IDX), used_idx);
    }

    /// An entry is not in flight any more, and was not used.
    pub(crate) fn forget(&self, head: u16) {
        if let Some(at) = self.desc(head) {
            self.store::<u8>(at + INFLIGHT, 0);
        }
    }

    /// The driver broke the queue, in this run or an earlier one since the last reset.
    pub(crate) fn broken(&self, fault: Fault) {
        let number = FAULTS.iter().position(|other| *other == fault);
        // Fits: there are few. 0 is a queue that is whole.
        let number = number.unwrap_or_default() as u32 + 1;
        self.store::<u32>(self.at + BROKEN, number);
    }

    /// How the driver broke the queue, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        let number = self.load::<u32>(self.at + BROKEN).checked_sub(1)?;
        Some(FAULTS.get(number as usize).copied().unwrap_or(Fault::Ring))
    }

    /// Whether the record is about the run that the transport wants.
    pub(crate) fn is_current(&self) -> bool {
        let wanted = self.load::<u32>(self.wanted);
        wanted != 0 && wanted == self.load::<u32>(self.at + RUN)
    }

    /// A reset has mended the queue.
    pub(crate) fn mended(&self) {
        self.store::<u32>(self.at + BROKEN, 0);
    }

    /// A run begins in which a ring of `size` entries goes on at `used_idx`, with no entry in
    /// flight but `kept`.
    pub(crate) fn start(&self, size: u16, used_idx: u16, kept: impl Fn(u16) -> bool) {
        for head in 0..MAX_SIZE {
            if self.is_in_flight(head) && !kept(head) {
                self.forget(head);
            }
        }
        self.store::<u16>(self.field(DESC_NUM), size);
        self.store::<u16>(self.field(USED_IDX), used_idx);
        // Last: until here the run has not begun.
        let wanted = self.load::<u32>(self.wanted);
        self.store::<u32>(self.at + RUN, wanted);
    }

    /// Finds out what is in flight in a ring of `size` entries whose used ring has this index.
    ///
    /// # Errors
    ///
    /// [`Fault::Ring`] where the ring is not the one that the record is about: the driver has
    /// changed the index, which is the device's.
    pub(crate) fn recover(&self, size: u16, used_idx: u16) -> Result<Vec<Recorded>, Fault> {
        if self.load::<u16>(self.field(DESC_NUM)) != size {
            return Err(Fault::Ring);
        }
        match used_idx.wrapping_sub(self.load::<u16>(self.field(USED_IDX))) {
            0 => {}
            1 => self.used(self.load::<u16>(self.field(LAST_BATCH_HEAD)), used_idx),
            _ => return Err(Fault::Ring),
        }
        Ok(self.entries())
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.desc(head)
            .is_some_and(|at| self.load::<u8>(at + INFLIGHT) != 0)
    }

    /// All entries in flight, in the order in which they were taken.
    pub(crate) fn entries(&self) -> Vec<Recorded> {
        let mut entries: Vec<_> = (0..MAX_SIZE)
            .filter(|head| self.is_in_flight(*head))
            .filter_map(|head| {
                let at = self.desc(head)?;
                Some(Recorded {
                    number: self.load::<u64>(at + COUNTER),
                    head,
                    begun: self.load::<u8>(at + BEGUN) != 0,
                })
            })
            .collect();
        entries.sort_by_key(|entry| entry.number);
        entries
    }
}

/// Simulates that the process is killed before one of its stores to the record.
#[cfg(test)]
pub(crate) mod kill {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// What the thread panics with.
    pub(crate) struct Killed;

    /// The thread panics before store number `stores` from now on, or never.
    pub(crate) fn after(stores: Option<u32>) {
        LEFT.set(stores);
    }

    /// Called before each store.
    pub(crate) fn step() {
        match LEFT.get() {
            None => {}
            Some(0) => std::panic::resume_unwind(Box::new(Killed)),
            Some(left) => LEFT.set(Some(left - 1)),
        }
    }
}
