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
        Reaped, //
    },
    slot::{
        Completion,
        Slot, //
    },
    state::{
        Entry,
        Queue,
        State, //
    }, //
};
use crate::{
    layout::Opcode,
    virtio::{
        reset::Quiesced,
        ring::{
            descriptor_flag, //
            EntryId,
        },
        transport::Transport, //
    }, //
};
use core::mem::replace;
use kernel::{
    device::Bound,
    pci,
    prelude::*, //
};

/// How many times longer than a request may take at all it may take as long as the device
/// finishes others. Many slow ones wait for each other.
const MAX_AGE: u8 = 4;

/// Whether a device makes progress: for how long it has used nothing.
pub(super) struct Progress {
    /// Index up to which used entries were taken, as of [`Ring::taken`].
    ///
    /// [`Ring::taken`]: crate::virtio::ring::Ring::taken
    taken: u16,
    /// For so many calls of [`Queue::age`] it was that.
    ticks: u8,
}

impl Progress {
    /// For a ring of which nothing was taken.
    pub(super) fn new() -> Self {
        Self { taken: 0, ticks: 0 }
    }

    /// Counts a call of [`Queue::age`] at which used entries were taken up to `taken`.
    fn count(&mut self, taken: u16) {
        self.ticks = if taken == self.taken {
            self.ticks.saturating_add(1)
        } else {
            0
        };
        self.taken = taken;
    }

    /// Whether the device is stuck, where the oldest request is in flight since `oldest`
    /// calls.
    fn is_stuck(&self, oldest: u8, limit: u8) -> bool {
        oldest > limit && self.ticks >= limit || oldest > limit.saturating_mul(MAX_AGE)
    }
}

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
        !matches!(self.opcode(), Opcode::Copy)
    }
}

impl State {
    /// Makes a request available to the device, which sees it once it is published. A
    /// device that is not there gets it when it is back.
    pub(super) fn put_in_flight(&mut self, slot: KBox<Slot>) {
        let entry = slot.entry();
        if !self.detached {
            self.ring
                .push(entry, slot.table(), descriptor_flag::INDIRECT);
        }
        self.entries[entry] = Entry::InFlight(slot);
    }

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
                    .push(entry, slot.table(), descriptor_flag::INDIRECT);
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

    /// Hands out no more slots until [`Self::thaw`]: who wants one waits.
    pub(crate) fn freeze(&self) {
        self.state.lock().frozen = true;
    }

    /// Ends what the device has done, and returns whether that was all it had. Any
    /// context, no lock held.
    pub(crate) fn is_idle(&self, device: &pci::Device<Bound>) -> bool {
        self.reap(device);
        self.state.lock().ring.in_flight() == 0
    }

    /// Gives the device no more requests, and does not notify it any more: it is about
    /// to be reset.
    pub(crate) fn detach(&self) {
        let mut state = self.state.lock();
        state.detached = true;
        // What was to be notified is so no more.
        let _ = state.ring.wants_notification();
    }

    /// Ends what the device had finished, and does with the rest as `unfinished` says.
    /// Sleeps. To be called after [`Self::detach`].
    pub(crate) fn reclaim(
        &self,
        device: &pci::Device<Bound>,
        _quiesced: &Quiesced,
        unfinished: Unfinished,
    ) {
        self.reap(device);
        for entry in self.entries() {
            let mut state = self.state.lock();
            let Some(mut slot) = Self::take_entry(&mut state, entry) else {
                continue;
            };
            match unfinished.error(&slot) {
                None => state.entries[entry] = Entry::InFlight(slot),
                Some(error) => {
                    slot.fail(error);
                    if slot.owner.takes_it_back() {
                        Self::hand_back(&mut state, slot);
                    } else {
                        drop(state);
                        self.end(device, slot);
                    }
                }
            }
        }
    }

    /// Ends all that is in flight with `error`, but leaves what it holds to a device that
    /// may use it for ever: pages stay pinned, slots are lost. To be called after
    /// [`Self::detach`]. Any context, no lock held.
    pub(crate) fn abandon(&self, error: Error) {
        for entry in self.entries() {
            let mut state = self.state.lock();
            let Some(mut slot) = Self::take_entry(&mut state, entry) else {
                continue;
            };
            slot.fail(error);
            let owner = replace(&mut slot.owner, Completion::Nobody);
            if !owner.takes_it_back() {
                drop(state);
                let ended = CompletedRequest::new(owner, &slot);
                KBox::into_inner(slot).leak();
                ended.tell();
                continue;
            }
            let waiter = matches!(owner, Completion::Waiting).then(|| slot.waiter().clone());
            // Whoever is told gives up what was lent: by then it is the device's for ever.
            KBox::into_inner(slot).leak();
            state.entries[entry] = Entry::Lost(error);
            if let Some(waiter) = waiter {
                waiter.complete();
            }
        }
    }

    /// Sets the queue up in a device that was reset, empty. Requests are accepted again,
    /// but stay here until [`Self::thaw`]. Sleeps.
    ///
    /// `EIO` where the device does not have the queue as it was.
    pub(crate) fn restart(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        quiesced: &Quiesced,
    ) -> Result {
        let areas = {
            let mut state = self.state.lock();
            state.ring.restart(quiesced);
            if self.polled || state.busy_pollers > 0 {
                state.ring.disable_interrupts();
            }
            state.failed = None;
            state.frozen = true;
            state.ring.areas()
        };
        transport.enable_queue_again(device, self.doorbell, &areas, self.vector)
    }

    /// Gives the device, which was started, all that is in flight, and hands slots out
    /// again. Any context, no lock held.
    pub(crate) fn thaw(&self, transport: &Transport, device: &pci::Device<Bound>) {
        let mut state = self.state.lock();
        if state.detached {
            state.detached = false;
            state.push_again();
        }
        state.frozen = false;
        if state.waiting > 0 {
            // Who takes a slot wakes the next, while there are more.
            self.slot_freed.notify_one();
        }
        drop(state);
        self.notify(transport, device);
        self.pollers.notify();
    }

    /// Counts the age of what is in flight, and returns whether the device is stuck: something
    /// has been in flight for more than `limit` calls, and in as many nothing at all was used;
    /// or it has been so for [`MAX_AGE`] times as many, whatever else was used. Returns as
    /// well what was seen of what the device has done, which is ended before. Any context,
    /// no lock held.
    pub(crate) fn age(&self, device: &pci::Device<Bound>, limit: u8) -> (Reaped, bool) {
        let reaped = if self.state.lock().ring.has_used() {
            self.reap(device)
        } else {
            Reaped::default()
        };
        let mut state = self.state.lock();
        let taken = state.ring.taken();
        state.progress.count(taken);
        for entry in state.ring.entries() {
            if let Entry::InFlight(slot) = &mut state.entries[entry] {
                slot.age = slot.age.saturating_add(1);
            }
        }
        (reaped, state.is_stuck(limit))
    }

    /// Whether the device is stuck, as of the last call of [`Self::age`]. Any context.
    pub(crate) fn is_stuck(&self, limit: u8) -> bool {
        self.state.lock().is_stuck(limit)
    }

    fn entries(&self) -> impl Iterator<Item = EntryId> {
        self.state.lock().ring.entries()
    }
}

#[kernel::macros::kunit_tests(ringbar_lifecycle)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_nothing_is_stuck() {
        let mut progress = Progress::new();
        for age in 1..=8 {
            progress.count(0);
            assert!(!progress.is_stuck(age, 8));
        }
        progress.count(0);
        assert!(progress.is_stuck(9, 8));
    }

    #[test]
    fn a_device_that_makes_progress_has_longer() {
        let mut progress = Progress::new();
        for age in 1..=32 {
            progress.count(age.into());
            assert!(!progress.is_stuck(age, 8));
        }
        progress.count(33);
        assert!(progress.is_stuck(33, 8));
    }

    #[test]
    fn a_device_that_stops_is_stuck_a_while_later() {
        let mut progress = Progress::new();
        progress.count(5);
        for _ in 0..7 {
            progress.count(5);
            assert!(!progress.is_stuck(20, 8));
        }
        progress.count(5);
        assert!(progress.is_stuck(20, 8));
        // What was submitted after a pause is young all the same.
        assert!(!progress.is_stuck(1, 8));
    }
}
