// SPDX-License-Identifier: GPL-2.0

//! The life of a queue beyond ordinary operation: it is frozen or stopped, its device
//! is reset, and it begins anew.
//!
//! ```text
//!            freeze                detach, reset, reclaim           restart, thaw
//!  running ---------> frozen --------------------------> detached -----------------> running
//!     |                                                     |
//!     +-- stop ----> stopped -- detach, reset, reclaim -----+
//! ```
//!
//! | state | who wants a slot | who submits a slot | the ring belongs to |
//! |---|---|---|---|
//! | running | gets it | does so | driver and device |
//! | frozen | waits, or is told `EAGAIN` | does so | driver and device |
//! | stopped | gets the error | gets the error | driver and device |
//! | detached | as before | waits for the restart, unless stopped | the driver |
//!
//! What is in flight stays in the table of entries throughout. It can be given to the
//! device again, because a slot holds all that the device needs. It ends only with
//! [`Queue::reclaim`], for which the device must not do DMA any more.

use super::{
    completion::{
        CompletedRequest,
        Completion, //
    },
    slot::Slot,
    state::{
        Entry,
        Queue,
        QueueRef,
        State, //
    }, //
};
use crate::{
    layout::Opcode,
    virtio::{
        reset::Quiesced,
        ring::{
            descriptor_flag,
            EntryId, //
        }, //
    }, //
};
use core::{
    iter::once,
    mem::replace, //
};
use kernel::prelude::*;

/// What becomes of the requests that a device did not finish before it was reset.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unfinished {
    /// They end with this error.
    Fail(Error),
    /// The device gets them again when it is back. It may execute them a second time, so
    /// those for which that makes a difference end with `EIO`.
    Resubmit,
}

impl Unfinished {
    /// The error to end this request with, if it is to end.
    fn error(self, slot: &Slot) -> Option<Error> {
        match self {
            Self::Fail(error) => Some(error),
            Self::Resubmit if slot.may_repeat() => None,
            Self::Resubmit => Some(EIO),
        }
    }
}

impl Slot {
    /// Whether the request has the same effect if it is executed twice. A copy has not,
    /// where its ranges overlap.
    fn may_repeat(&self) -> bool {
        !matches!(self.buffers.opcode(), Opcode::Copy)
    }
}

impl State {
    fn is_stuck(&self, limit: u8) -> bool {
        let mut oldest = 0;
        for entry in self.ring.entries() {
            if let Entry::InFlight(slot) = &self.entries[entry] {
                oldest = oldest.max(slot.age);
            }
        }
        self.progress.is_stuck(oldest, limit)
    }

    /// Makes all that is in flight available to the device, whose ring is empty.
    fn push_again(&mut self) {
        for entry in self.ring.entries() {
            if let Entry::InFlight(slot) = &mut self.entries[entry] {
                slot.age = 0;
                self.ring
                    .push(entry, slot.buffers.table(), descriptor_flag::INDIRECT);
            }
        }
        self.ring.publish();
    }
}

impl Queue {
    /// Takes no more requests: they get `error`, and so do those who wait for a
    /// slot. What is in flight stays so.
    pub(crate) fn stop(&self, error: Error) {
        let mut state = self.state.lock();
        state.failed = Some(error);
        self.slot_freed.notify_all();
        self.dma_freed.notify_all();
        drop(state);
        self.pollers.notify();
    }

    /// Whether no more requests are taken, be it because the device broke the queue. Any
    /// context.
    pub(crate) fn is_failed(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// Hands out no more slots until [`QueueRef::thaw`]: who wants one waits.
    pub(crate) fn freeze(&self) {
        self.state.lock().frozen = true;
    }

    /// Gives the device no more requests, and does not notify it any more: it is about
    /// to be reset.
    pub(crate) fn detach(&self) {
        let mut state = self.state.lock();
        state.detached = true;
        state.quiescing = true;
        // What was to be notified is so no more.
        let _ = state.ring.wants_notification();
    }

    /// Whether the device is stuck, as of the last call of [`QueueRef::age`]. Any context.
    pub(crate) fn is_stuck(&self, limit: u8) -> bool {
        self.state.lock().is_stuck(limit)
    }

    fn entries(&self) -> impl Iterator<Item = EntryId> {
        self.state.lock().ring.entries()
    }
}

impl QueueRef<'_> {
    /// Ends what the device has done, and returns whether that was all it had. Any
    /// context, no lock held.
    pub(crate) fn is_idle(self) -> bool {
        self.reap();
        self.queue.state.lock().ring.in_flight() == 0
    }

    /// Ends what the device had finished, and does with the rest as `unfinished` says.
    /// Sleeps. To be called after [`Queue::detach`].
    pub(crate) fn reclaim(self, _quiesced: &Quiesced, unfinished: Unfinished) {
        self.reap();
        for entry in self.entries() {
            let mut state = self.queue.state.lock();
            let Some(mut slot) = state.take_in_flight(entry) else {
                continue;
            };
            match unfinished.error(&slot) {
                None => state.entries[entry] = Entry::InFlight(slot),
                Some(error) => {
                    slot.buffers.fail(error);
                    if slot.completion.is_sync() {
                        state.put_done(slot);
                    } else {
                        drop(state);
                        let completed = self.end(&mut slot);
                        self.free(once(slot));
                        completed.complete();
                    }
                }
            }
        }
    }

    /// Ends all that is in flight with `error`, but leaves what it holds to a device that
    /// may use it for ever: pages stay pinned, slots are lost. To be called after
    /// [`Queue::detach`]. Any context, no lock held.
    pub(crate) fn abandon(self, error: Error) {
        for entry in self.entries() {
            let mut state = self.queue.state.lock();
            let Some(mut slot) = state.take_in_flight(entry) else {
                continue;
            };
            slot.buffers.fail(error);
            if slot.completion.is_sync() {
                state.entries[entry] = Entry::Lost(error);
                // Whoever is told gives up what was lent: by then it is the device's for ever.
                KBox::into_inner(slot).leak_and_wake();
                continue;
            }
            drop(state);
            let completion = replace(&mut slot.completion, Completion::Nobody);
            let completed = CompletedRequest::new(completion, &slot.buffers);
            KBox::into_inner(slot).leak();
            completed.complete();
        }
    }

    /// Sets the queue up in a device that was reset, empty. Requests are accepted again,
    /// but stay here until [`Self::thaw`]. Sleeps.
    ///
    /// `EIO` where the device does not have the queue as it was.
    pub(crate) fn restart(self, quiesced: &Quiesced) -> Result {
        let areas = {
            let mut state = self.queue.state.lock();
            state.ring.restart(quiesced);
            self.update_taken(&state.ring);
            // As when all was taken.
            if self.polled && state.waiting == 0 || state.busy_pollers > 0 {
                state.ring.disable_interrupts();
            }
            state.failed = None;
            state.quiescing = false;
            state.frozen = true;
            state.ring.areas()
        };
        self.transport()
            .enable_queue_again(self.device(), self.doorbell, &areas, self.vector)
    }

    /// Gives the device, which was started, all that is in flight, and hands slots out
    /// again. Any context, no lock held.
    pub(crate) fn thaw(self) {
        let mut state = self.queue.state.lock();
        if state.detached {
            state.detached = false;
            state.push_again();
        }
        state.frozen = false;
        if state.waiting > 0 {
            // Whoever takes a slot wakes the next, while there are more.
            self.slot_freed.notify_one();
        }
        drop(state);
        self.notify();
        self.pollers.notify();
    }

    /// Counts the age of what is in flight, after it has ended what the device has done.
    /// Returns whether the device is stuck: something has been in flight for more than `limit`
    /// calls, and in as many nothing at all was used; or it has been so for
    /// [`MAX_AGE`] times as many, whatever else was used. Any context, no lock held.
    ///
    /// [`MAX_AGE`]: super::progress::MAX_AGE
    pub(crate) fn age(self, limit: u8) -> bool {
        if self.has_used() {
            self.reap();
        }
        let mut state = self.queue.state.lock();
        let taken = state.ring.taken();
        state.progress.count(taken);
        for entry in state.ring.entries() {
            if let Entry::InFlight(slot) = &mut state.entries[entry] {
                slot.age = slot.age.saturating_add(1);
            }
        }
        state.is_stuck(limit)
    }
}
