// SPDX-License-Identifier: GPL-2.0

//! Taking requests back from the device.
//!
//! [`QueueRef::reap`] takes the lock twice for up to [`REAP_BATCH`] requests: to take them out
//! of the used ring, and to free their slots. What they held is given back in between, and
//! their callers are told last, both without the lock.

use super::{
    completion::{
        CompletedRequest,
        Completion, //
    },
    slot::Slot,
    state::{
        QueueRef,
        State, //
    }, //
};
use crate::{
    abstractions::dma::segments::CleanedPages,
    virtio::ring::{
        EntryId,
        RingFault, //
    }, //
};
use core::{
    iter::once,
    mem::{
        forget,
        replace, //
    }, //
};
use kernel::prelude::*;

/// Greatest number of used entries that are taken under one hold of the lock.
const REAP_BATCH: usize = 16;

/// Places for what is taken under one hold of the lock.
type Batch<T> = [Option<T>; REAP_BATCH];

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

/// How a device broke a queue.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the fields are for the log")]
pub(crate) enum Fault {
    /// The ring does not hold together.
    Ring(RingFault),
    /// A used entry was not in flight.
    NotInFlight(u16),
}

/// Who reaps, and so what follows when all was taken.
pub(super) enum Reaper<'a> {
    /// Anyone else.
    Anyone,
    /// The interrupt handler.
    Interrupt,
    /// A submitter that busy-polls for the end of its requests.
    Poller(&'a mut Poller),
}

/// A submitter that busy-polls. Until it stops, the queue has no interrupts.
pub(super) struct Poller {
    /// Index of the ring up to which entries were pushed whose end it waits for.
    target: u16,
    /// The request that is its own, if it takes its slot back.
    entry: Option<EntryId>,
    /// Whether it still counts as one of [`State::busy_pollers`].
    pub(super) is_polling: bool,
    /// The slot of its request, if that has ended when it stopped.
    pub(super) ended: Option<Result<KBox<Slot>>>,
}

impl State {
    /// Asks for no interrupts while a submitter busy-polls for what was pushed, and for `entry`
    /// in particular. Until [`Self::end_polling`] all others on the queue wait for that
    /// submitter, who must not be preempted.
    #[inline]
    pub(super) fn begin_polling(&mut self, entry: Option<EntryId>) -> Poller {
        self.busy_pollers += 1;
        self.ring.disable_interrupts();
        Poller {
            target: self.ring.pushed(),
            entry,
            is_polling: true,
            ended: None,
        }
    }

    /// Asks for interrupts again, if nobody else busy-polls. Returns whether something was used
    /// meanwhile: no interrupt may come for it, and the caller has to reap.
    pub(super) fn end_polling(&mut self, poller: &mut Poller) -> bool {
        if !replace(&mut poller.is_polling, false) {
            return false;
        }
        self.busy_pollers -= 1;
        self.busy_pollers == 0 && self.ring.enable_interrupts()
    }

    /// Has a poller stop, once, when its requests have all ended, and gives it its own. Interrupts
    /// are left to the caller.
    #[inline]
    fn stop_poller(&mut self, poller: &mut Poller) {
        if poller.is_polling && self.ring.has_taken(poller.target) {
            poller.is_polling = false;
            self.busy_pollers -= 1;
            // Not there where requests that were pushed later have ended before it.
            poller.ended = poller.entry.and_then(|entry| self.take_done(entry));
        }
    }
}

/// What [`QueueRef::reap_within`] has seen.
#[derive(Default)]
pub(super) struct Reaped {
    /// Whether anything was used.
    pub(super) any: bool,
    /// Whether the budget was spent, so that [`QueueRef::reap`] has to follow elsewhere.
    pub(super) more: bool,
    /// Whether the device has broken the queue, which must not be used before a reset.
    pub(super) broken: bool,
}

impl QueueRef<'_> {
    /// Takes what the device has used and ends those requests; when it returns, an
    /// interrupt comes for the next, unless somebody busy-polls for it. Returns whether there
    /// was any. Any context, no lock held.
    pub(crate) fn reap(self) -> bool {
        self.reap_within(&mut Budget::unlimited(), Reaper::Anyone)
            .any
    }

    /// As [`Self::reap`], because of an interrupt: only as much as `budget` allows. The rest is
    /// left to a work item; no interrupt comes for it.
    pub(crate) fn reap_after_interrupt(self, budget: &mut Budget) {
        // Mostly another queue has raised it.
        if self.has_used() && self.reap_within(budget, Reaper::Interrupt).more {
            self.recovery.reap_later();
        }
    }

    /// As [`Self::reap`], as far as `budget` goes.
    pub(super) fn reap_within(self, budget: &mut Budget, mut reaper: Reaper<'_>) -> Reaped {
        let mut seen = Reaped::default();
        loop {
            let mut slots: Batch<KBox<Slot>> = [const { None }; REAP_BATCH];
            let taken = self.take_used(&mut slots, &mut reaper);
            seen.any |= taken.any;
            if taken.slots > 0 {
                self.end_batch(&mut slots[..taken.slots], budget);
            }
            // All slots were taken out, and to drop it is a look at each place.
            forget(slots);
            seen.broken |= taken.broken;
            if let Some(fault) = taken.fault {
                self.recovery
                    .queue_broken(self.device(), self.index(), fault);
            }
            if !taken.more {
                return seen;
            }
            if budget.is_spent() {
                seen.more = true;
                return seen;
            }
            if matches!(reaper, Reaper::Interrupt) {
                // It counts once.
                reaper = Reaper::Anyone;
            }
        }
    }

    /// Moves used requests to `slots`, from the first place on, and wakes those that are
    /// waited for.
    #[inline]
    fn take_used(self, slots: &mut Batch<KBox<Slot>>, reaper: &mut Reaper<'_>) -> Taken {
        let mut taken = Taken::default();
        let mut guard = self.queue.state.lock();
        let state = &mut *guard;
        // Before anything is ended: whoever is told may submit at once. Somebody who is
        // preparing or ending a request does not wait for the interrupt.
        if matches!(reaper, Reaper::Interrupt)
            && state.ring.has_used()
            && !state.has_slots_outside_device()
        {
            self.policy.interrupted();
        }
        loop {
            let Some(place) = slots.get_mut(taken.slots) else {
                taken.more = true;
                break;
            };
            match state.ring.pop() {
                Ok(Some(used)) => {
                    taken.any = true;
                    let Some(mut slot) = state.take_in_flight(used.entry) else {
                        taken.broken = true;
                        taken.fault = state.fail(Fault::NotInFlight(used.entry.number()));
                        break;
                    };
                    slot.buffers.set_written(used.len);
                    if slot.completion.is_sync() {
                        state.put_done(slot);
                    } else {
                        *place = Some(slot);
                        taken.slots += 1;
                    }
                }
                Ok(None) => {
                    if let Reaper::Poller(poller) = reaper {
                        state.stop_poller(poller);
                    }
                    // Those who wait for a slot of a polled queue cannot do without.
                    if self.polled && state.waiting == 0 || state.busy_pollers > 0 {
                        state.ring.disable_interrupts();
                        break;
                    }
                    if !state.ring.enable_interrupts() {
                        break;
                    }
                }
                Err(fault) => {
                    taken.broken = true;
                    taken.fault = state.fail(Fault::Ring(fault));
                    break;
                }
            }
        }
        self.update_taken(&state.ring);
        taken
    }

    /// Ends requests that no thread of the driver waits for: gives back what they held, frees
    /// their slots, tells their callers. Leaves no slot in its place. Any context, no lock held.
    fn end_batch(self, slots: &mut [Option<KBox<Slot>>], budget: &mut Budget) {
        let mut completed: Batch<CompletedRequest> = [const { None }; REAP_BATCH];
        for (slot, completed) in slots.iter_mut().flatten().zip(&mut completed) {
            budget.spend(slot.buffers.segments(), slot.buffers.length());
            *completed = Some(self.end(slot));
        }
        let count = slots.len();
        self.free(slots.iter_mut().filter_map(Option::take));
        for request in completed.iter_mut().take(count).filter_map(Option::take) {
            request.complete();
        }
        // As of the slots.
        forget(completed);
    }

    /// Reads the outcome of a request and gives back what it held. Its caller is to be told
    /// once its slot is free. Any context, no lock held.
    pub(super) fn end(self, slot: &mut Slot) -> CompletedRequest {
        let completion = replace(&mut slot.completion, Completion::Nobody);
        let completed = CompletedRequest::new(completion, &slot.buffers);
        if let Some(cleaned) = slot.release(self.device()) {
            cleaned.drop_later(&self.work);
        }
        completed
    }

    /// Gives back what a slot held, and frees it. Returns pages that have to be made dirty
    /// before they go back: to be dropped where nothing is held. Any context, no lock held.
    pub(super) fn release(self, mut slot: KBox<Slot>) -> Option<CleanedPages> {
        let cleaned = slot.release(self.device());
        self.free(once(slot));
        cleaned
    }
}

/// What [`QueueRef::take_used`] has taken.
#[derive(Default)]
struct Taken {
    /// Whether anything was used.
    any: bool,
    /// Number of slots.
    slots: usize,
    /// Whether there may be more.
    more: bool,
    /// Whether the device has broken the queue.
    broken: bool,
    /// How the device has just broken the queue, where that is to be reported.
    fault: Option<Fault>,
}

impl State {
    /// Takes no more requests, because of `fault`. Returns that to be reported, unless the queue
    /// takes none already or its device is being reset.
    fn fail(&mut self, fault: Fault) -> Option<Fault> {
        if self.failed.is_some() {
            return None;
        }
        self.failed = Some(EIO);
        (!self.quiescing).then_some(fault)
    }
}

#[kernel::macros::kunit_tests(ringbar_reap)]
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
