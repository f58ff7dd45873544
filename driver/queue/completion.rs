// SPDX-License-Identifier: GPL-2.0

//! What becomes of the requests of a queue once the device is done with them.

use super::{
    slot::{
        Completion,
        Outcome,
        Slot, //
    },
    split::Part,
    state::{
        Entry,
        Queue,
        State, //
    }, //
};
use crate::{
    abstractions::{
        dma::segments::CleanedPages,
        fs::kiocb::QueuedKiocb,
        io_uring::command::QueuedUringCommand, //
    },
    virtio::ring::{
        EntryId,
        RingFault, //
    }, //
};
use core::{
    mem::{
        forget,
        replace, //
    },
    slice::IterMut, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*, //
};

/// How many used entries are taken under one hold of the lock.
const REAP_BATCH: usize = 16;

/// How much may be done in one interrupt, for all queues together, or otherwise without
/// being preempted. Ending a request takes time for each of its segments, and the CPU does
/// nothing else meanwhile.
pub(crate) struct Budget(usize);

impl Budget {
    /// Requests, segments and [`Self::UNIT`]s that are ended within an interrupt: some hundred
    /// microseconds.
    const PER_INTERRUPT: usize = 512;

    /// For so many bytes, the pages of a segment cost as much as the segment.
    const UNIT: usize = 64 << 10;

    /// What one interrupt may do.
    pub(crate) fn for_interrupt() -> Self {
        Self(Self::PER_INTERRUPT)
    }

    /// No bound: for those who can be preempted.
    fn unlimited() -> Self {
        Self(usize::MAX)
    }

    /// Takes what a request with so many segments and bytes costs.
    fn spend(&mut self, segments: usize, bytes: usize) {
        self.0 = self.0.saturating_sub(1 + segments + bytes / Self::UNIT);
    }

    fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

/// What [`Queue::reap`] has seen.
#[derive(Default)]
pub(crate) struct Reaped {
    /// Whether anything was used.
    pub(crate) any: bool,
    /// Whether the budget was spent, so that [`Queue::reap`] has to follow elsewhere.
    pub(crate) more: bool,
    /// The queue is broken and must not be used before a reset.
    pub(crate) fault: Option<Fault>,
    /// Index up to which used entries were taken, as of [`Ring::taken`].
    ///
    /// [`Ring::taken`]: crate::virtio::ring::Ring::taken
    taken: u16,
}

impl Reaped {
    /// Adds what was seen later.
    pub(super) fn add(&mut self, later: Self) {
        self.any |= later.any;
        self.more |= later.more;
        self.fault = self.fault.or(later.fault);
        self.taken = later.taken;
    }

    /// Whether the budget was spent; the caller sees to the rest.
    pub(super) fn take_more(&mut self) -> bool {
        replace(&mut self.more, false)
    }

    /// Whether all was taken that had been pushed when the ring's index was `target`.
    pub(super) fn has_taken(&self, target: u16) -> bool {
        // At most the size of the ring apart, which is less than half the numbers.
        target.wrapping_sub(self.taken) as i16 <= 0
    }
}

/// How a device broke a queue.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the fields are for the log")]
pub(crate) enum Fault {
    /// The ring does not hold together.
    Ring(RingFault),
    /// A used entry was not in flight.
    NotInFlight(u16),
}

/// Who is to be told what of a request that has ended.
pub(super) enum CompletedRequest {
    Nobody,
    Kiocb(QueuedKiocb, Outcome),
    Command(QueuedUringCommand, Result<u64>),
    Part(Part, Outcome),
}

impl CompletedRequest {
    /// Reads the outcome from the slot.
    #[inline]
    pub(super) fn new(owner: Completion, slot: &Slot) -> Self {
        match owner {
            Completion::Kiocb(kiocb) => Self::Kiocb(kiocb, slot.transfer_outcome()),
            Completion::Command(command) => Self::Command(command, slot.command_outcome()),
            Completion::Part(part) => Self::Part(part, slot.transfer_outcome()),
            Completion::Nobody | Completion::Submitter | Completion::Waiting => Self::Nobody,
        }
    }

    /// Tells. Any context, no lock held: the owner may submit again.
    #[inline]
    pub(super) fn tell(self) {
        match self {
            Self::Kiocb(kiocb, outcome) => kiocb.complete(outcome.into_result()),
            Self::Command(command, result) => command.complete(result),
            Self::Part(part, outcome) => part.done(outcome),
            Self::Nobody => {}
        }
    }
}

impl Queue {
    /// Takes what the device has used and ends those requests; when it returns, an
    /// interrupt comes for the next, unless somebody looks for it. Any context, no
    /// lock held.
    pub(crate) fn reap(&self, device: &pci::Device<Bound>) -> Reaped {
        self.reap_within(device, &mut Budget::unlimited())
    }

    /// As [`Self::reap`], as far as `budget` goes.
    pub(super) fn reap_within(&self, device: &pci::Device<Bound>, budget: &mut Budget) -> Reaped {
        let mut seen = Reaped::default();
        loop {
            let mut batch = [const { None }; REAP_BATCH];
            let (taken, more) = self.take_used(&mut batch, &mut seen);
            for slot in batch.iter_mut().take(taken).filter_map(Option::take) {
                budget.spend(slot.segments(), slot.length());
                self.end(device, slot);
            }
            // Nothing is left in it, and to drop it is a look at each place.
            forget(batch);
            if !more {
                return seen;
            }
            if budget.is_spent() {
                seen.more = true;
                return seen;
            }
        }
    }

    /// Moves used requests to `batch`, and wakes those that are waited for. Returns how many
    /// places were filled, and whether there may be more.
    fn take_used(&self, batch: &mut [Option<KBox<Slot>>], seen: &mut Reaped) -> (usize, bool) {
        let places = batch.len();
        let mut rest = batch.iter_mut();
        let mut state = self.state.lock();
        let more = self.take_used_locked(&mut state, &mut rest, seen);
        seen.taken = state.ring.taken();
        (places - rest.len(), more)
    }

    fn take_used_locked(
        &self,
        state: &mut State,
        places: &mut IterMut<'_, Option<KBox<Slot>>>,
        seen: &mut Reaped,
    ) -> bool {
        loop {
            if places.len() == 0 {
                return true;
            }
            match state.ring.pop() {
                Ok(Some(used)) => {
                    seen.any = true;
                    let Some(mut slot) = Self::take_entry(state, used.entry) else {
                        if state.failed.is_none() {
                            seen.fault = Some(Fault::NotInFlight(used.entry.number()));
                            state.failed = Some(EIO);
                        }
                        return false;
                    };
                    slot.set_written(used.len);
                    if slot.owner.takes_it_back() {
                        Self::hand_back(state, slot);
                    } else if let Some(place) = places.next() {
                        *place = Some(slot);
                    }
                }
                // Those who wait for a slot of a polled queue cannot do without.
                Ok(None) if self.polled && state.waiting == 0 || state.busy_pollers > 0 => {
                    state.ring.disable_interrupts();
                    return false;
                }
                Ok(None) if state.ring.enable_interrupts() => {}
                Ok(None) => return false,
                Err(fault) => {
                    if state.failed.is_none() {
                        seen.fault = Some(Fault::Ring(fault));
                        state.failed = Some(EIO);
                    }
                    return false;
                }
            }
        }
    }

    /// The request that was in flight in `entry`.
    pub(super) fn take_entry(state: &mut State, entry: EntryId) -> Option<KBox<Slot>> {
        let place = &mut state.entries[entry];
        match replace(place, Entry::Idle) {
            Entry::InFlight(slot) => Some(slot),
            other => {
                *place = other;
                None
            }
        }
    }

    /// Lets the thread that waits for this request, or looks for it, have it.
    pub(super) fn hand_back(state: &mut State, slot: KBox<Slot>) {
        if matches!(slot.owner, Completion::Waiting) {
            slot.waiter().complete();
        }
        // Who is woken has to take the lock first.
        let entry = slot.entry();
        state.entries[entry] = Entry::Done(slot);
    }

    /// Ends a request that nobody waits for: gives back what it held, frees its
    /// slot, tells the owner. Any context, no lock held.
    pub(super) fn end(&self, device: &pci::Device<Bound>, mut slot: KBox<Slot>) {
        let owner = replace(&mut slot.owner, Completion::Nobody);
        let ended = CompletedRequest::new(owner, &slot);
        self.release_or_defer(device, slot);
        ended.tell();
    }

    /// Gives back what a slot held, and frees it. Returns pages that have to be made dirty
    /// before they go back: to be dropped where nothing is held. Any context, no lock held.
    pub(super) fn release(
        &self,
        device: &pci::Device<Bound>,
        mut slot: KBox<Slot>,
    ) -> Option<CleanedPages> {
        let cleaned = slot.release(device);
        self.free(slot);
        cleaned
    }

    /// As [`Self::release`], but pages that have to be made dirty are left to a work item.
    fn release_or_defer(&self, device: &pci::Device<Bound>, slot: KBox<Slot>) {
        if let Some(cleaned) = self.release(device, slot) {
            cleaned.drop_later(&self.work);
        }
    }

    /// Ends a transfer whose slot came back: gives back what it held, and returns how
    /// it went. Any context, no lock held.
    pub(crate) fn finish_transfer(
        &self,
        device: &pci::Device<Bound>,
        slot: KBox<Slot>,
    ) -> Result<usize> {
        let outcome = slot.transfer_outcome();
        self.release_or_defer(device, slot);
        outcome.into_result()
    }
}

#[kernel::macros::kunit_tests(ringbar_completion)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_by_segments_as_well() {
        let mut budget = Budget::for_interrupt();
        for _ in 0..Budget::PER_INTERRUPT.div_ceil(256 + 15) {
            assert!(!budget.is_spent());
            budget.spend(255, 255 * 4096);
        }
        assert!(budget.is_spent());
        budget.spend(255, 0);
        assert!(budget.is_spent());
        let mut unlimited = Budget::unlimited();
        unlimited.spend(1 << 30, 0);
        assert!(!unlimited.is_spent());
    }

    #[test]
    fn a_budget_is_spent_by_bytes_as_well() {
        let mut budget = Budget::for_interrupt();
        budget.spend(1, (Budget::PER_INTERRUPT - 3) * Budget::UNIT);
        assert!(!budget.is_spent());
        budget.spend(0, 0);
        assert!(budget.is_spent());
    }
}
