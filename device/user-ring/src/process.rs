// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The side of the process.

use core::sync::atomic::Ordering::Relaxed;

use crate::entry::{COMPLETION_LAP_WORD, Completion, SUBMISSION_LAP_WORD, Submission};
use crate::layout::{Entries, NEED_WAKEUP, Position, REAPED, STATE};
use crate::sync::SyncPoint;
use crate::words::{AreaTooSmall, Words, WriteWords, check_size};

/// The process's half of a queue: `U` is the user area, `D` the device area.
///
/// # Invariants
///
/// At most as many requests as the rings have entries were pushed and not reaped.
#[derive(Debug)]
pub struct Queue<U, D> {
    user: U,
    device: D,
    entries: Entries,
    pushed: Position,
    reaped: Position,
}

/// Error: the queue has as many requests in flight as it has entries. Reap completions first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl core::fmt::Display for Full {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("all entries of the queue are in flight; reap completions first")
    }
}

impl core::error::Error for Full {}

/// Whether the driver has to be asked to kick the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a device that sleeps does not see the submission without a kick"]
pub enum Kick {
    /// The device sleeps, or is about to.
    Needed,
    /// The device polls.
    NotNeeded,
}

/// Whether a queue lives, as the device area says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// The queue is served.
    Live,
    /// The device was removed.
    Removed,
    /// The device has failed.
    Failed,
    /// The queue was deleted or its context closed.
    Closed,
    /// The device wrote a number that has no meaning. The queue cannot be used.
    Unknown,
}

impl QueueState {
    /// The state with this number.
    pub const fn from_raw(number: u64) -> Self {
        match number {
            0 => Self::Live,
            1 => Self::Removed,
            2 => Self::Failed,
            3 => Self::Closed,
            _ => Self::Unknown,
        }
    }
}

impl<U: WriteWords, D: Words> Queue<U, D> {
    /// A queue on areas that were never used and contain zeros.
    pub fn new(user: U, device: D, entries: Entries) -> Result<Self, AreaTooSmall> {
        Self::starting_at(user, device, entries, Position::default())
    }

    /// A queue whose next entries have this position, in areas without an entry of it.
    pub(crate) fn starting_at(
        user: U,
        device: D,
        entries: Entries,
        start: Position,
    ) -> Result<Self, AreaTooSmall> {
        check_size("user", &user, entries.user_words())?;
        check_size("device", &device, entries.device_words())?;
        Ok(Self {
            user,
            device,
            entries,
            pushed: start,
            reaped: start,
        })
    }

    /// Number of requests that were pushed and not reaped.
    pub fn in_flight(&self) -> usize {
        // At most the number of entries, by the invariant.
        self.pushed.since(self.reaped) as usize
    }

    /// Writes a request to the ring. A device that polls may take it at once. A device that
    /// sleeps sees it after [`Self::submit`].
    #[inline]
    pub fn push(&mut self, submission: &Submission) -> Result<(), Full> {
        if self.in_flight() >= self.entries.get() {
            return Err(Full);
        }
        let slot = self.pushed.slot(self.entries);
        let words = submission.words(self.pushed.submission_lap(self.entries));
        for (index, word) in words.into_iter().enumerate() {
            if index != SUBMISSION_LAP_WORD {
                self.user.store(slot.submission(index), word, Relaxed);
            }
        }
        self.user.store(
            slot.submission(SUBMISSION_LAP_WORD),
            words[SUBMISSION_LAP_WORD],
            SyncPoint::PublishSubmission.ordering(),
        );
        // INVARIANT: Less than the number of entries were in flight.
        self.pushed = self.pushed.next();
        Ok(())
    }

    /// Makes sure that the device sees all requests that were pushed, once for a batch.
    #[inline]
    pub fn submit(&mut self) -> Kick {
        SyncPoint::SubmitFence.fence();
        // Any number but 0 costs at most a kick that is not needed.
        match self.device.load(NEED_WAKEUP, Relaxed) {
            0 => Kick::NotNeeded,
            _ => Kick::Needed,
        }
    }

    /// Takes the next completion, if the device has written it.
    ///
    /// A device that lies can return any `user_data`, but no more completions than there are
    /// requests in flight.
    #[inline]
    pub fn reap(&mut self) -> Option<Completion> {
        if self.in_flight() == 0 {
            return None;
        }
        let slot = self.reaped.slot(self.entries);
        let last = self.device.load(
            slot.completion(COMPLETION_LAP_WORD),
            SyncPoint::ReapCompletion.ordering(),
        );
        if Completion::lap(last) != self.reaped.completion_lap(self.entries) {
            return None;
        }
        let first = self.device.load(slot.completion(0), Relaxed);
        // INVARIANT: A request was in flight.
        self.reaped = self.reaped.next();
        Some(Completion::parse([first, last]))
    }

    /// Number of completions reaped so far, for a wait.
    pub fn reaped(&self) -> Position {
        self.reaped
    }

    /// Tells the driver how many completions were reaped, before the process calls `poll`.
    pub fn publish_reaped(&mut self) {
        // A hint: the driver reads it in the system call that follows.
        self.user.store(REAPED, self.reaped.get(), Relaxed);
    }

    /// Whether the queue lives. For a poll that found no completion.
    pub fn state(&self) -> QueueState {
        QueueState::from_raw(self.device.load(STATE, Relaxed))
    }
}
