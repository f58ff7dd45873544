// SPDX-License-Identifier: GPL-2.0

//! The life of a queue beyond ordinary operation: the driver freezes or stops it, resets its
//! device, and restarts it.
//!
//! ```text
//!            freeze                detach, reset, reclaim           restart, thaw
//!  running ---------> frozen --------------------------> detached -----------------> running
//!     |                                                     |
//!     +-- stop ----> stopped -- detach, reset, reclaim -----+
//! ```
//!
//! | state | a caller that acquires a slot | a caller that submits a request | owner of the ring |
//! |---|---|---|---|
//! | running | gets it | succeeds | driver and device |
//! | frozen | waits, or gets `EAGAIN` | succeeds | driver and device |
//! | stopped | gets the error | gets the error | driver and device |
//! | detached | as before | waits for the restart, unless stopped | the driver |
//!
//! Requests in flight stay in the table of entries throughout. The driver can make them available
//! to the device again, because a slot contains its whole request. They end only with
//! [`Queue::reclaim`], which requires that the device does no DMA any more.

use super::{
    completion::{
        CompletedRequest,
        Completion, //
    },
    progress::Progress,
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

/// Treatment of the requests that a device did not complete before it was reset.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unfinished {
    /// The requests fail with this error.
    Fail(Error),
    /// The driver submits the requests again after the restart. The device may execute them a
    /// second time, so requests for which that makes a difference fail with `EIO`.
    Resubmit,
}

impl Unfinished {
    /// The error with which this request fails, if it does.
    fn error(self, slot: &Slot) -> Option<Error> {
        match self {
            Self::Fail(error) => Some(error),
            Self::Resubmit if slot.may_repeat() => None,
            Self::Resubmit => Some(EIO),
        }
    }
}

impl Slot {
    /// Whether the request has the same effect if the device executes it twice. A copy whose ranges
    /// overlap has not.
    fn may_repeat(&self) -> bool {
        !matches!(self.buffers.opcode(), Opcode::Copy)
    }
}

impl State {
    /// Whether the device is stuck, as of the last tick, if it has used entries up to `used`.
    fn is_stuck(&self, limit: u16, used: u16) -> bool {
        let mut oldest = 0;
        for entry in self.ring.entries() {
            if let Entry::InFlight(slot) = &self.entries[entry] {
                oldest = oldest.max(slot.age);
            }
        }
        self.progress.is_stuck(oldest, limit, used)
    }

    /// Makes all requests in flight available to the device, whose ring is empty.
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
    /// Accepts no more requests: they fail with `error`, and so do the threads that wait for a
    /// slot. Requests in flight stay in flight.
    pub(crate) fn stop(&self, error: Error) {
        let mut state = self.state.lock();
        state.failed = Some(error);
        self.slot_freed.notify_all();
        self.dma_freed.notify_all();
        drop(state);
        self.pollers.notify();
    }

    /// Whether the queue accepts no more requests, for example because the device broke it. Any
    /// context.
    pub(crate) fn is_failed(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// Lets no caller acquire a slot until [`QueueRef::thaw`]: a caller that needs one waits.
    pub(crate) fn freeze(&self) {
        self.state.lock().frozen = true;
    }

    /// Makes no more requests available to the device, and does not notify it any more: the device
    /// is about to be reset.
    pub(crate) fn detach(&self) {
        let mut state = self.state.lock();
        state.detached = true;
        state.quiescing = true;
        // Discards the notification that was outstanding.
        let _ = state.ring.wants_notification();
    }

    fn entries(&self) -> impl Iterator<Item = EntryId> {
        self.state.lock().ring.entries()
    }
}

impl QueueRef<'_> {
    /// Completes the requests that the device has completed, and returns whether none is in flight
    /// any more. Any context, no lock held.
    pub(crate) fn is_idle(self) -> bool {
        self.reap();
        self.queue.state.lock().ring.in_flight() == 0
    }

    /// Completes the requests that the device had completed, and treats the rest as `unfinished`
    /// says. Sleeps. To be called after [`Queue::detach`].
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
                        let completed = self.take_outcome(&mut slot);
                        self.free(once(slot));
                        completed.complete();
                    }
                }
            }
        }
    }

    /// Fails all requests in flight with `error`, but leaks their memory, because the device may
    /// use it for ever: pages stay pinned, slots are lost. To be called after [`Queue::detach`].
    /// Any context, no lock held.
    pub(crate) fn abandon(self, error: Error) {
        for entry in self.entries() {
            let mut state = self.queue.state.lock();
            let Some(mut slot) = state.take_in_flight(entry) else {
                continue;
            };
            slot.buffers.fail(error);
            if slot.completion.is_sync() {
                state.entries[entry] = Entry::Lost(error);
                // Leaked before the caller wakes: the caller then returns borrowed pages to their
                // owner.
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

    /// Sets the queue up, empty, in a device that was reset. The queue accepts requests again, but
    /// keeps them until [`Self::thaw`]. Sleeps.
    ///
    /// `EIO` if the device no longer has the queue as before.
    pub(crate) fn restart(self, quiesced: &Quiesced) -> Result {
        let areas = {
            let mut state = self.queue.state.lock();
            state.ring.restart(quiesced);
            self.update_taken(&state.ring);
            // As after reaping all used entries.
            if self.polled && state.waiting == 0 || state.busy_pollers > 0 {
                state.ring.disable_interrupts();
            }
            state.failed = None;
            state.quiescing = false;
            state.frozen = true;
            state.ring.areas()
        };
        self.transport()
            .enable_queue_again(self.device(), self.doorbell, &areas, self.message)
    }

    /// Makes all requests in flight available to the started device, and allows callers to acquire
    /// slots again. Any context, no lock held.
    pub(crate) fn thaw(self) {
        let mut state = self.queue.state.lock();
        if state.detached {
            state.detached = false;
            state.push_again();
        }
        state.frozen = false;
        if state.waiting > 0 && state.free_slots() > 0 {
            // A thread that takes a slot wakes the next one, while there are more slots.
            self.slot_freed.notify_one();
        }
        drop(state);
        self.notify();
        self.pollers.notify();
    }

    /// Has the time of the requests in flight begin anew, because ticks have another length from now
    /// on. Any context, no lock held.
    pub(crate) fn restart_clock(self) {
        let mut state = self.queue.state.lock();
        state.progress = Progress::new();
        for entry in state.ring.entries() {
            if let Entry::InFlight(slot) = &mut state.entries[entry] {
                slot.age = 0;
            }
        }
    }

    /// Counts a tick of the watchdog for the queue. Reaps used entries for which no interrupt has
    /// come for `lost` ticks. The device is stuck if a request has been in flight for more than
    /// `limit` ticks, and the device has used no entry for as many; or if a request has been in
    /// flight for [`MAX_AGE`] times as many, whatever else the device has used. Without a limit it
    /// is not. Any context, no lock held.
    ///
    /// [`MAX_AGE`]: super::progress::MAX_AGE
    pub(crate) fn age(self, limit: Option<u16>, lost: u16) -> Aged {
        let mut aged = Aged::default();
        // Nobody gets interrupts for a polled queue.
        if self.polled && self.has_used() {
            self.reap();
        }
        let has_used = self.has_used();
        let late = {
            let mut state = self.queue.state.lock();
            let taken = state.ring.taken();
            state.progress.count_untaken(taken, has_used)
        };
        let is_late = has_used && late >= lost;
        if is_late {
            aged.lost_interrupt = self.reap();
        }
        let mut state = self.queue.state.lock();
        if is_late {
            state.progress.took_untaken();
        }
        let taken = state.ring.taken();
        state.progress.count(taken);
        for entry in state.ring.entries() {
            if let Entry::InFlight(slot) = &mut state.entries[entry] {
                slot.age = slot.age.saturating_add(1);
            }
        }
        let used = self.used_index();
        let suspected = limit.filter(|&limit| state.is_stuck(limit, used));
        drop(state);
        // Only then, so that a late interrupt still finds its entries, and a lost one is noticed.
        aged.stuck = suspected.is_some_and(|limit| self.is_stuck(limit));
        aged
    }

    /// Completes the requests that the device has completed, and returns whether it is stuck with
    /// another one, as of the last call of [`Self::age`]. Any context, no lock held.
    pub(crate) fn is_stuck(self, limit: u16) -> bool {
        // The oldest request may be among those.
        self.reap();
        self.queue.state.lock().is_stuck(limit, self.used_index())
    }
}

/// The result of [`QueueRef::age`].
#[derive(Default)]
pub(crate) struct Aged {
    /// Whether the device is stuck.
    pub(crate) stuck: bool,
    /// Whether the device had used entries without an interrupt.
    pub(crate) lost_interrupt: bool,
}
