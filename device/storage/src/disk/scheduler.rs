// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From operations of the storage to operations of the kernel, and back.
//!
//! ```text
//!             room                    nothing before it
//!  incoming ────────► active, blocked ─────────────────► active, begun ─► done
//!     │                  │                                  │    ▲
//!     └──── cancel ──────┘                                  ▼    │ short, or another stage
//!                                                        operations of the kernel
//! ```
//!
//! Operations that touch a block of which one writes are executed in the order of their
//! submission. So what a disk still does for a queue that was stopped comes before what was
//! submitted later, and a write of a part of a block, which reads the block first, loses
//! nothing of another. All else is executed at once and ends in any order.
//!
//! There is one flush of the kernel at a time, and those that wait for its end become one: the
//! kernel tells one flush of an error, and the data that it could not write may be another's.
//!
//! Once the storage has failed for good, the ring gets nothing more that changes the file, and
//! no flush: [`Scheduler::push`] ends these operations with the failure, however far they have
//! got. What the kernel has at that moment it may still execute.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::FallocateFlags;

use super::ring::{Action, Io, Ring, Stage};
use crate::aligned::Memory;
use crate::asynchronous::{Completed, Done, Operation};
use crate::buffer::Buffer;
use crate::error::StorageError;
use crate::extent::{Extent, Owner};
use crate::failure::Failure;

/// Most operations that are active. Bounds the time in which overlaps are found, and the
/// notes of who waits for whom.
const MAX_ACTIVE: usize = 1024;

/// How often an operation is repeated because of a signal or a lack of memory.
const MAX_RETRIES: u8 = 100;

/// Whether a read or write that failed with this error number may succeed when it is repeated.
const fn is_passing(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::EAGAIN | libc::ENOMEM)
}

/// The same for a flush. The kernel tells one flush of an error, so the next one would succeed
/// without the data. A lack of memory may be such an error, of a write of the kernel's.
const fn is_passing_for_flush(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::EAGAIN)
}

/// Bytes of zeros that are written at once where the file cannot be told to have them.
const ZEROS: usize = 256 << 10;

/// An operation that was submitted. A discard, or one that writes zeros, is of whole blocks or
/// of a part of one.
pub(super) struct Submitted {
    pub(super) owner: Owner,
    pub(super) operation: Operation,
    pub(super) done: Done,
}

/// What an active operation does.
enum Work {
    Read(Buffer),
    Write(Buffer),
    /// Sets whole blocks to 0.
    Clear(FallocateFlags),
}

struct Active {
    owner: Owner,
    /// Whole blocks.
    blocks: Extent,
    work: Work,
    /// How many active operations have to end before this begins.
    blockers: usize,
    /// Which operations this is a blocker of. They may have been cancelled.
    blocks_others: Vec<u64>,
    /// Operations of the kernel that have not ended.
    in_flight: usize,
    error: Option<StorageError>,
    retries: u8,
    done: Done,
}

impl Active {
    const fn writes(&self) -> bool {
        !matches!(self.work, Work::Read(_))
    }
}

/// Has operations executed by a [`Ring`].
pub(super) struct Scheduler {
    /// Of the file, for messages.
    name: String,
    /// Bytes of a block.
    granularity: u64,
    /// Of memory for the kernel.
    align: usize,
    /// Bytes of the storage, which may change. The file has as many.
    capacity: Arc<AtomicU64>,
    incoming: VecDeque<Submitted>,
    /// By number, in the order of submission.
    active: BTreeMap<u64, Active>,
    next: u64,
    /// Operations of the kernel for which the ring had no room yet.
    ready: VecDeque<Io>,
    flushes: Flushes,
    /// How the file cannot be told to have zeros.
    unsupported: FallocateFlags,
    /// What is written then, once that was needed.
    zeros: Option<Arc<Memory>>,
    /// Why the storage has failed for good.
    failure: Arc<OnceLock<Failure>>,
}

#[derive(Default)]
struct Flushes {
    /// They wait for the flush of the kernel.
    running: Vec<Done>,
    /// They wait for the next one.
    waiting: Vec<(Owner, Done)>,
    /// How often the one that runs was repeated.
    retries: u8,
}

/// The operation has ended; it has this buffer.
fn end(done: Done, result: Result<(), StorageError>, buffer: Option<Buffer>) {
    done(Completed { result, buffer });
}

impl Scheduler {
    /// For a file of `capacity` bytes with blocks of `granularity` bytes. Notes in `failure`
    /// that the storage has failed for good.
    pub(super) fn new(
        name: String,
        granularity: u64,
        align: usize,
        capacity: Arc<AtomicU64>,
        failure: Arc<OnceLock<Failure>>,
    ) -> Self {
        Self {
            name,
            granularity,
            align,
            capacity,
            incoming: VecDeque::new(),
            active: BTreeMap::new(),
            next: 0,
            ready: VecDeque::new(),
            flushes: Flushes::default(),
            unsupported: FallocateFlags::empty(),
            zeros: None,
            failure,
        }
    }

    /// Takes an operation. It is given to a ring by [`Self::push`].
    pub(super) fn accept(&mut self, submitted: Submitted) {
        self.incoming.push_back(submitted);
        self.admit();
    }

    /// Drops operations of an owner that have not begun.
    pub(super) fn cancel(&mut self, owner: Owner) {
        self.incoming.retain(|other| other.owner != owner);
        self.flushes.waiting.retain(|(other, _)| *other != owner);
        self.drop_blocked(|active| active.owner == owner);
        self.admit();
    }

    /// Drops all operations that have not begun.
    pub(super) fn cancel_all(&mut self) {
        self.incoming.clear();
        self.flushes.waiting.clear();
        self.drop_blocked(|_| true);
    }

    fn drop_blocked(&mut self, is_dropped: impl Fn(&Active) -> bool) {
        let blocked = |active: &Active| active.blockers > 0 && is_dropped(active);
        let numbers: Vec<_> = self
            .active
            .iter()
            .filter_map(|(number, active)| blocked(active).then_some(*number))
            .collect();
        // All of them first: none may begin because another is gone.
        let dropped = numbers
            .iter()
            .filter_map(|number| self.active.remove(number));
        let dropped: Vec<_> = dropped.collect();
        for active in dropped {
            self.unblock(active.blocks_others);
        }
    }

    /// Whether operations were taken that have not ended.
    pub(super) fn is_busy(&self) -> bool {
        !self.active.is_empty() || !self.incoming.is_empty() || !self.flushes.running.is_empty()
    }

    /// The ring is of no use any more: all operations end with an error.
    pub(super) fn give_up(&mut self, why: &str) {
        let failure = self.fail(format!("{}: {why}", self.name), None);
        let flushes = std::mem::take(&mut self.flushes);
        let waiting = flushes.waiting.into_iter().map(|(_, done)| done);
        let flushes = flushes.running.into_iter().chain(waiting);
        let active = std::mem::take(&mut self.active).into_values();
        let incoming = self.incoming.drain(..).map(|submitted| submitted.done);
        for done in flushes
            .chain(active.map(|active| active.done))
            .chain(incoming)
        {
            end(done, Err(failure.error()), None);
        }
    }

    /// Gives operations to the ring until it has no room.
    pub(super) fn push(&mut self, ring: &mut impl Ring) {
        while let Some(io) = self.ready.pop_front() {
            let changes = !matches!(io.action, Action::Read { .. });
            if let (true, Some(failure)) = (changes, self.failure.get()) {
                let error = failure.error();
                self.refuse(io, error);
                continue;
            }
            if let Err(io) = ring.push(io) {
                self.ready.push_front(io);
                return;
            }
        }
    }

    /// Ends an operation that the ring does not get, because the storage has failed.
    fn refuse(&mut self, io: Io, error: StorageError) {
        let operation = io.operation;
        match io.action {
            Action::Sync => return self.end_flushes(),
            Action::Write { memory, .. } => {
                self.set_error(operation, error);
                return self.written(operation, memory);
            }
            Action::WriteZeros { .. } | Action::Allocate { .. } | Action::Read { .. } => {}
        }
        self.set_error(operation, error);
        self.finish(operation);
    }

    /// Makes operations active while there is room.
    fn admit(&mut self) {
        while self.active.len() < MAX_ACTIVE
            && let Some(submitted) = self.incoming.pop_front()
        {
            self.activate(submitted);
        }
    }

    fn activate(&mut self, submitted: Submitted) {
        let Submitted {
            owner,
            operation,
            done,
        } = submitted;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        // Here, and not before there is room for it: its memory has no other limit.
        let clear = |extent: Extent, mode| match extent.blocks(self.granularity) == extent {
            true => Work::Clear(mode),
            false => Work::Write(Buffer::zeroed(extent, self.granularity, self.align)),
        };
        let failure = self.failure.get().map(Failure::error);
        let (extent, work) = match (operation, failure) {
            (Operation::Read(buffer), _) => (buffer.extent(), Work::Read(buffer)),
            (Operation::Write(buffer), Some(error)) => return end(done, Err(error), Some(buffer)),
            (_, Some(error)) => return end(done, Err(error), None),
            (Operation::Write(buffer), None) => (buffer.extent(), Work::Write(buffer)),
            (Operation::Discard(extent), None) => (extent, clear(extent, punch)),
            (Operation::WriteZeroes(extent), None) => (extent, clear(extent, zero)),
            (Operation::Flush, None) => {
                self.flushes.waiting.push((owner, done));
                return self.flush();
            }
        };
        if extent.length == 0 {
            let buffer = match work {
                Work::Read(buffer) | Work::Write(buffer) => Some(buffer),
                Work::Clear(_) => None,
            };
            return end(done, Ok(()), buffer);
        }
        let number = self.next;
        self.next += 1;
        let mut active = Active {
            owner,
            blocks: extent.blocks(self.granularity),
            work,
            blockers: 0,
            blocks_others: Vec::new(),
            in_flight: 0,
            error: None,
            retries: 0,
            done,
        };
        for earlier in self.active.values_mut() {
            let conflicts = active.writes() || earlier.writes();
            if conflicts && active.blocks.overlaps(earlier.blocks) {
                earlier.blocks_others.push(number);
                active.blockers += 1;
            }
        }
        let blocked = active.blockers > 0;
        self.active.insert(number, active);
        if !blocked {
            self.begin(number);
        }
    }

    /// Begins the flush of the kernel where one is waited for and none runs.
    fn flush(&mut self) {
        if !self.flushes.running.is_empty() || self.flushes.waiting.is_empty() {
            return;
        }
        let waiting = self.flushes.waiting.drain(..);
        self.flushes.running = waiting.map(|(_, done)| done).collect();
        self.flushes.retries = 0;
        self.ready.push_back(Io {
            operation: u64::MAX,
            stage: Stage::Main,
            action: Action::Sync,
        });
    }

    /// Nothing is in the way of an operation any more.
    fn begin(&mut self, number: u64) {
        let Some(active) = self.active.get_mut(&number) else {
            return;
        };
        let mut edges = Vec::new();
        if let Work::Write(buffer) = &active.work {
            let (extent, blocks) = (buffer.extent(), active.blocks);
            let head = extent.offset != blocks.offset;
            let tail = extent.end() != blocks.end();
            let single = blocks.length == self.granularity;
            if head || tail && single {
                edges.push((Stage::Head, blocks.offset));
            }
            if tail && !single {
                edges.push((Stage::Tail, blocks.end() - self.granularity));
            }
        }
        if edges.is_empty() {
            return self.execute(number);
        }
        active.in_flight = edges.len();
        for (stage, at) in edges {
            let block = self.granularity as usize;
            let memory = Memory::zeroed(block, self.align);
            self.ready.push_back(Io {
                operation: number,
                stage,
                action: Action::Read {
                    at,
                    memory,
                    part: 0..block,
                },
            });
        }
    }

    /// Has the kernel execute the main part of an operation.
    fn execute(&mut self, number: u64) {
        let Some(active) = self.active.get_mut(&number) else {
            return;
        };
        let Extent { offset: at, length } = active.blocks;
        let part = 0..length as usize;
        let action = match &mut active.work {
            Work::Read(buffer) => {
                buffer
                    .take_memory()
                    .map(|memory| Action::Read { at, memory, part })
            }
            Work::Write(buffer) => {
                buffer
                    .take_memory()
                    .map(|memory| Action::Write { at, memory, part })
            }
            Work::Clear(mode) if self.unsupported.contains(*mode) => {
                let zeros = self.zeros.get_or_insert_with(|| {
                    let bytes = ZEROS.next_multiple_of(self.granularity as usize);
                    Arc::new(Memory::zeroed(bytes, self.align))
                });
                let memory = Arc::clone(zeros);
                let part = 0..memory.len().min(length as usize);
                Some(Action::WriteZeros { at, memory, part })
            }
            Work::Clear(mode) => Some(Action::Allocate {
                mode: *mode,
                at,
                length,
            }),
        };
        let Some(action) = action else {
            return self.finish(number);
        };
        active.in_flight = 1;
        self.ready.push_back(Io {
            operation: number,
            stage: Stage::Main,
            action,
        });
    }

    /// The kernel has ended an operation with a result.
    pub(super) fn ended(&mut self, io: Io, result: i32) {
        let result = match result {
            0.. => Ok(result as usize),
            _ => Err(result.saturating_neg()),
        };
        if let Action::Sync = io.action {
            return self.flushed(io, result);
        }
        let Some(active) = self.active.get_mut(&io.operation) else {
            // Given up.
            return;
        };
        if let Err(errno) = result
            && is_passing(errno)
            && active.retries < MAX_RETRIES
        {
            active.retries += 1;
            return self.ready.push_back(io);
        }
        let Io {
            operation,
            stage,
            action,
        } = io;
        match action {
            Action::Read { at, memory, part } => {
                match self.advance(operation, at, part, result, true) {
                    Some((at, part)) => {
                        let action = Action::Read { at, memory, part };
                        self.again(operation, stage, action);
                    }
                    None => self.read(operation, stage, memory),
                }
            }
            Action::Write { at, memory, part } => {
                match self.advance(operation, at, part, result, false) {
                    Some((at, part)) => {
                        let action = Action::Write { at, memory, part };
                        self.again(operation, stage, action);
                    }
                    None => self.written(operation, memory),
                }
            }
            Action::WriteZeros { at, memory, part } => {
                let end = at + part.len() as u64;
                match self.advance(operation, at, part, result, false) {
                    Some((at, part)) => {
                        let action = Action::WriteZeros { at, memory, part };
                        self.again(operation, stage, action);
                    }
                    None => self.zeroed(operation, end, memory),
                }
            }
            Action::Allocate { mode, .. } => match result {
                Err(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => {
                    self.unsupported |= mode;
                    self.execute(operation);
                }
                Err(errno) => {
                    self.set_error(operation, io::Error::from_raw_os_error(errno).into());
                    self.finish(operation);
                }
                Ok(_) => self.finish(operation),
            },
            Action::Sync => {}
        }
    }

    fn again(&mut self, operation: u64, stage: Stage, action: Action) {
        self.ready.push_back(Io {
            operation,
            stage,
            action,
        });
    }

    fn set_error(&mut self, operation: u64, error: StorageError) {
        if let Some(active) = self.active.get_mut(&operation) {
            active.error.get_or_insert(error);
        }
    }

    /// What is left of a transfer of which so many bytes are done; `None` where it has ended,
    /// well or with an error.
    fn advance(
        &mut self,
        operation: u64,
        at: u64,
        part: std::ops::Range<usize>,
        result: Result<usize, i32>,
        reads: bool,
    ) -> Option<(u64, std::ops::Range<usize>)> {
        let error = match result {
            Err(errno) => io::Error::from_raw_os_error(errno),
            Ok(bytes) if bytes >= part.len() => return None,
            Ok(bytes) => {
                // Direct I/O goes on at a block.
                let whole = bytes - bytes % self.granularity as usize;
                if whole > 0 {
                    return Some((at + whole as u64, part.start + whole..part.end));
                }
                if reads && at < self.capacity.load(Ordering::Relaxed) {
                    // A write behind the end would make the file long enough again, and what
                    // was lost would read as 0.
                    self.fail(format!("{} was cut off at byte {at}", self.name), None);
                }
                let (kind, what) = match reads {
                    true => (io::ErrorKind::UnexpectedEof, "ends"),
                    false => (io::ErrorKind::WriteZero, "takes nothing"),
                };
                io::Error::new(kind, format!("{} {what} at byte {at}", self.name))
            }
        };
        self.set_error(operation, error.into());
        None
    }

    /// A read of the kernel has ended.
    fn read(&mut self, operation: u64, stage: Stage, memory: Memory) {
        let Some(active) = self.active.get_mut(&operation) else {
            return;
        };
        active.in_flight -= 1;
        match &mut active.work {
            Work::Read(buffer) => {
                buffer.put_memory(memory);
                return self.finish(operation);
            }
            Work::Write(buffer) if active.error.is_none() => {
                let single = active.blocks.length == self.granularity;
                if stage == Stage::Head {
                    buffer.fill_head(memory.bytes());
                }
                if stage == Stage::Tail || single {
                    buffer.fill_tail(memory.bytes());
                }
            }
            Work::Write(_) | Work::Clear(_) => {}
        }
        match (active.in_flight, &active.error) {
            (0, None) => self.execute(operation),
            (0, Some(_)) => self.finish(operation),
            _ => {}
        }
    }

    /// A write of the kernel has ended.
    fn written(&mut self, operation: u64, memory: Memory) {
        if let Some(active) = self.active.get_mut(&operation)
            && let Work::Write(buffer) = &mut active.work
        {
            buffer.put_memory(memory);
        }
        self.finish(operation);
    }

    /// The kernel has written zeros up to this byte, unless there was an error.
    fn zeroed(&mut self, operation: u64, end: u64, memory: Arc<Memory>) {
        let Some(active) = self.active.get(&operation) else {
            return;
        };
        let left = active.blocks.end() - end;
        if active.error.is_some() || left == 0 {
            return self.finish(operation);
        }
        let part = 0..memory.len().min(left as usize);
        let at = end;
        self.again(
            operation,
            Stage::Main,
            Action::WriteZeros { at, memory, part },
        );
    }

    /// An operation has ended: those that waited for it begin.
    fn finish(&mut self, operation: u64) {
        let Some(active) = self.active.remove(&operation) else {
            return;
        };
        let buffer = match active.work {
            Work::Read(buffer) | Work::Write(buffer) => Some(buffer),
            Work::Clear(_) => None,
        };
        end(active.done, active.error.map_or(Ok(()), Err), buffer);
        self.unblock(active.blocks_others);
        self.admit();
    }

    fn unblock(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            let Some(active) = self.active.get_mut(&number) else {
                continue;
            };
            active.blockers -= 1;
            if active.blockers == 0 {
                self.begin(number);
            }
        }
    }

    /// The flush of the kernel has ended.
    fn flushed(&mut self, io: Io, result: Result<usize, i32>) {
        if let Err(errno) = result {
            if is_passing_for_flush(errno) && self.flushes.retries < MAX_RETRIES {
                self.flushes.retries += 1;
                return self.ready.push_back(io);
            }
            let what = format!("data of {} could not be written back", self.name);
            self.fail(what, Some(io::Error::from_raw_os_error(errno)));
        }
        self.end_flushes();
    }

    /// Ends the flushes of the kernel's that has ended, well unless the storage has failed. It
    /// may have failed while the kernel flushed: what is behind a cut was not written.
    fn end_flushes(&mut self) {
        let failure = self.failure.get().cloned();
        let mut ends = std::mem::take(&mut self.flushes.running);
        if failure.is_some() {
            let waiting = std::mem::take(&mut self.flushes.waiting);
            ends.extend(waiting.into_iter().map(|(_, done)| done));
        }
        for done in ends {
            let failed = failure.as_ref().map(Failure::error);
            end(done, failed.map_or(Ok(()), Err), None);
        }
        self.flush();
    }

    /// The storage has failed for good.
    fn fail(&self, what: String, source: Option<io::Error>) -> Failure {
        Failure::new(what, source).note(&self.failure).clone()
    }
}
