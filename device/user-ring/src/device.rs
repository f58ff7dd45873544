// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The side of the device. Nothing that a process writes can break a queue.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::entry::{
    COMPLETION_LAP_WORD, Completion, ReservedBits, SUBMISSION_LAP_WORD, SUBMISSION_USER_DATA_WORD,
    Submission,
};
use crate::layout::{
    ARMED, COMPLETED, Entries, KERNEL_WORDS, NEED_WAKEUP, Position, STARTED, SUBMISSION_WORDS,
    TAKEN,
};
use crate::sync::SyncPoint;
use crate::words::{AreaTooSmall, Words, WriteWords, check_size};

/// A number that no other queue of this program has, so that a request is not completed on another
/// queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct QueueId(u64);

impl QueueId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// The device's half of a queue: `U` is the user area, `D` the device area, `K` the queue's
/// line of the kernel area.
///
/// # Invariants
///
/// At most as many requests as the rings have entries were taken and not completed.
#[derive(Debug)]
pub struct Queue<U, D, K> {
    user: U,
    device: D,
    kernel: K,
    entries: Entries,
    id: QueueId,
    taken: Position,
    completed: Position,
    /// What `completed` in the device area says.
    announced: Position,
    /// The value of `armed` for which the device has interrupted last.
    signalled: u64,
}

/// A request that was taken from the ring. It must be given to [`Queue::complete`] once, and
/// is otherwise in flight for ever.
#[derive(Debug)]
#[must_use = "a request that is not completed stays in flight"]
pub struct Taken {
    queue: QueueId,
    submission: Result<Submission, ReservedBits>,
    user_data: u64,
}

impl Taken {
    /// The request, as a copy that the process cannot change.
    pub const fn submission(&self) -> Result<Submission, ReservedBits> {
        self.submission
    }
}

/// Error: the request was taken from another queue. Nothing was completed.
#[derive(Debug)]
pub struct OtherQueue(pub Taken);

impl core::fmt::Display for OtherQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the request was taken from another queue; complete it there")
    }
}

impl core::error::Error for OtherQueue {}

/// Error: no queue can begin on these areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewQueueError {
    /// An area is too small.
    TooSmall(AreaTooSmall),
    /// A device has served a queue in the device area.
    Used,
}

impl From<AreaTooSmall> for NewQueueError {
    fn from(error: AreaTooSmall) -> Self {
        Self::TooSmall(error)
    }
}

impl core::fmt::Display for NewQueueError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooSmall(error) => error.fmt(f),
            Self::Used => f.write_str(
                "a device has served a queue in the device area; a queue begins on zeros only",
            ),
        }
    }
}

impl core::error::Error for NewQueueError {}

/// Whether the driver has to be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a process sleeps until the interrupt"]
pub enum Interrupt {
    /// The driver waits for these completions.
    Needed,
    /// Nobody waits.
    NotNeeded,
}

impl<U: Words, D: WriteWords, K: Words> Queue<U, D, K> {
    /// A queue that sleeps, on areas in which no device has served a queue: the device area and
    /// the kernel area contain zeros. The process may have pushed already.
    ///
    /// The areas of a device that was started again are refused ([crate documentation](crate)).
    ///
    /// The areas begin as zeros, so `need_wakeup` must be stored before the process can submit:
    /// otherwise the first submission would wait for ever.
    pub fn new(user: U, device: D, kernel: K, entries: Entries) -> Result<Self, NewQueueError> {
        Self::starting_at(user, device, kernel, entries, Position::default())
    }

    /// A queue whose next entries have this position, in areas without an entry of it.
    pub(crate) fn starting_at(
        user: U,
        device: D,
        kernel: K,
        entries: Entries,
        start: Position,
    ) -> Result<Self, NewQueueError> {
        check_size("user", &user, entries.user_words())?;
        check_size("device", &device, entries.device_words())?;
        check_size("kernel", &kernel, KERNEL_WORDS)?;
        if device.load(STARTED, Relaxed) != 0 {
            return Err(NewQueueError::Used);
        }
        device.store(STARTED, 1, Relaxed);
        device.store(NEED_WAKEUP, 1, Relaxed);
        Ok(Self {
            user,
            device,
            kernel,
            entries,
            id: QueueId::next(),
            taken: start,
            completed: start,
            announced: start,
            // The driver begins with the same number.
            signalled: 0,
        })
    }

    /// Number of requests that were taken and not completed.
    pub fn in_flight(&self) -> usize {
        // At most the number of entries, by the invariant.
        self.taken.since(self.completed) as usize
    }

    /// Whether [`Self::take`] may take another request. A process that keeps the flow rule never
    /// reaches the limit. One that breaks it would otherwise make the device hold requests
    /// without end.
    fn has_room(&self) -> bool {
        self.in_flight() < self.entries.get()
    }

    fn is_next(&self, word: u64) -> bool {
        Submission::lap(word) == self.taken.submission_lap(self.entries)
    }

    /// Takes the next request, if the process has written it. Each word of the entry is loaded
    /// once.
    #[inline]
    pub fn take(&mut self) -> Option<Taken> {
        if !self.has_room() {
            return None;
        }
        let slot = self.taken.slot(self.entries);
        let first = self.user.load(
            slot.submission(SUBMISSION_LAP_WORD),
            SyncPoint::TakeSubmission.ordering(),
        );
        if !self.is_next(first) {
            return None;
        }
        let mut words = [first; SUBMISSION_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            if index != SUBMISSION_LAP_WORD {
                *word = self.user.load(slot.submission(index), Relaxed);
            }
        }
        // INVARIANT: There was room.
        self.taken = self.taken.next();
        Some(Taken {
            queue: self.id,
            submission: Submission::parse(words),
            user_data: words[SUBMISSION_USER_DATA_WORD],
        })
    }

    /// Completes a request of this queue; in any order. A process that polls sees the completion
    /// at once. A request of another queue is returned, for example one of a queue that was
    /// deleted while the request was in flight.
    #[inline]
    pub fn complete(&mut self, taken: Taken, result: u32, status: u16) -> Result<(), OtherQueue> {
        if taken.queue != self.id {
            return Err(OtherQueue(taken));
        }
        let completion = Completion {
            user_data: taken.user_data,
            result,
            status,
        };
        let slot = self.completed.slot(self.entries);
        let [first, last] = completion.words(self.completed.completion_lap(self.entries));
        self.device.store(slot.completion(0), first, Relaxed);
        self.device.store(
            slot.completion(COMPLETION_LAP_WORD),
            last,
            SyncPoint::PublishCompletion.ordering(),
        );
        self.completed = self.completed.next();
        Ok(())
    }

    /// Ends a turn: a number of requests that were taken and completed one after the other. The
    /// driver learns the number of completions, and whether it waits for them decides about an
    /// interrupt.
    #[inline]
    pub fn end_turn(&mut self) -> Interrupt {
        self.device.store(TAKEN, self.taken.get(), Relaxed);
        self.device.store(
            COMPLETED,
            self.completed.get(),
            SyncPoint::PublishCompleted.ordering(),
        );
        self.announced = self.completed;
        SyncPoint::TurnFence.fence();
        let armed = self.kernel.load(ARMED, Relaxed);
        if armed == self.signalled {
            return Interrupt::NotNeeded;
        }
        self.signalled = armed;
        Interrupt::Needed
    }

    /// Says that the device polls the queue. Until then each submission is kicked.
    pub fn wake_up(&mut self) {
        self.device.store(NEED_WAKEUP, 0, Relaxed);
    }
}

/// Announces that the device sleeps on all of these queues, unless one of them has a request, or a
/// completion since the last [`Queue::end_turn`], for which a driver may wait. Returns whether the
/// device may wait for a kick. Otherwise it ends the turns and polls the queues.
#[must_use = "a device that waits while this is false is not kicked"]
pub fn fall_asleep<U: Words, D: WriteWords, K: Words>(queues: &mut [Queue<U, D, K>]) -> bool {
    if queues
        .iter()
        .any(|queue| queue.announced != queue.completed)
    {
        queues.iter_mut().for_each(Queue::wake_up);
        return false;
    }
    for queue in queues.iter() {
        queue.device.store(NEED_WAKEUP, 1, Relaxed);
    }
    SyncPoint::SleepFence.fence();
    let has_request = |queue: &Queue<U, D, K>| {
        let word = queue
            .taken
            .slot(queue.entries)
            .submission(SUBMISSION_LAP_WORD);
        // `take` loads the entry with the ordering that it needs.
        queue.has_room() && queue.is_next(queue.user.load(word, Relaxed))
    };
    if queues.iter().any(has_request) {
        queues.iter_mut().for_each(Queue::wake_up);
        return false;
    }
    true
}
