// SPDX-License-Identifier: GPL-2.0

//! Reaping: taking used entries from the ring and completing their requests.
//!
//! [`QueueRef::reap`] takes the lock twice for up to [`REAP_BATCH`] requests: to take them from the
//! used ring, and to free their slots. In between it releases the pages of the requests, and last
//! it notifies their callers, both without the lock.

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
    abstractions::{
        array_vec::ArrayVec,
        dma::segments::CleanedPages, //
    },
    virtio::ring::{
        EntryId,
        RingFault, //
    }, //
};
use core::{
    iter::once,
    mem::replace, //
};
use kernel::prelude::*;

/// Greatest number of used entries that are taken while the lock is held once.
const REAP_BATCH: usize = 16;

/// The entries that are taken while the lock is held once.
type Batch<T> = ArrayVec<T, REAP_BATCH>;

/// Limit of the work in one interrupt, for all queues together, or in another section without
/// preemption. Completing a request takes time for each of its segments, and the CPU does nothing
/// else meanwhile.
pub(crate) struct Budget(usize);

impl Budget {
    /// Number of requests, segments and [`Self::UNIT`]s that are completed within an interrupt,
    /// which takes some hundred microseconds.
    const PER_INTERRUPT: usize = 512;

    /// Number of bytes for which the pages of a segment cost as much as the segment.
    const UNIT: usize = 64 << 10;

    /// The budget of one interrupt.
    pub(crate) fn for_interrupt() -> Self {
        Self(Self::PER_INTERRUPT)
    }

    /// Without a limit, for callers that can be preempted.
    fn unlimited() -> Self {
        Self(usize::MAX)
    }

    /// Subtracts the cost of a request with this number of segments and bytes.
    fn spend(&mut self, segments: usize, bytes: usize) {
        self.0 = self.0.saturating_sub(1 + segments + bytes / Self::UNIT);
    }

    fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

/// The way in which a device broke a queue.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the fields are for the log")]
pub(crate) enum Fault {
    /// The ring is inconsistent.
    Ring(RingFault),
    /// The device used an entry that was not in flight.
    NotInFlight(u16),
}

/// The kind of thread that reaps, which decides what follows the last used entry.
pub(super) enum Reaper<'a> {
    /// Any other thread.
    Anyone,
    /// The interrupt handler.
    Interrupt,
    /// A submitter that busy-polls for its requests.
    Poller(&'a mut Poller),
}

/// A submitter that busy-polls. Until it stops, the queue has no interrupts.
pub(super) struct Poller {
    /// Index of the ring up to which the submitter waits for the pushed entries.
    target: u16,
    /// The submitter's own request, if it takes its slot back.
    entry: Option<EntryId>,
    /// Whether it still counts as one of [`State::busy_pollers`].
    pub(super) is_polling: bool,
    /// The slot of its own request, if that has completed when the submitter stops.
    pub(super) ended: Option<Result<KBox<Slot>>>,
}

impl State {
    /// Disables interrupts while a submitter busy-polls for the pushed entries, and for `entry` in
    /// particular. Until [`Self::end_polling`] all other users of the queue rely on that submitter,
    /// which must not be preempted.
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

    /// Enables interrupts again, if no other thread busy-polls. Returns whether the device has used
    /// entries meanwhile: it may send no interrupt for them, so the caller has to reap.
    pub(super) fn end_polling(&mut self, poller: &mut Poller) -> bool {
        if !replace(&mut poller.is_polling, false) {
            return false;
        }
        self.busy_pollers -= 1;
        self.busy_pollers == 0 && self.ring.enable_interrupts()
    }

    /// Ends polling, once, when all requests of the poller have completed, and passes the poller
    /// the slot of its own request. The caller handles the interrupts.
    #[inline]
    fn stop_poller(&mut self, poller: &mut Poller) {
        if poller.is_polling && self.ring.has_taken(poller.target) {
            poller.is_polling = false;
            self.busy_pollers -= 1;
            // There is none if requests that were pushed later have completed before it.
            poller.ended = poller.entry.and_then(|entry| self.take_done(entry));
        }
    }
}

/// The result of [`QueueRef::reap_within`].
#[derive(Default)]
pub(super) struct Reaped {
    /// Whether the device had used any entry.
    pub(super) any: bool,
    /// Whether the budget was spent, so that another call of [`QueueRef::reap`] has to follow.
    pub(super) more: bool,
    /// Whether the device has broken the queue, which must not be used before a reset.
    pub(super) broken: bool,
}

impl QueueRef<'_> {
    /// Takes the used entries and completes their requests. When it returns, the device sends an
    /// interrupt for the next entry, unless a thread busy-polls for it. Returns whether there was a
    /// used entry. Any context, no lock held.
    pub(crate) fn reap(self) -> bool {
        self.reap_within(&mut Budget::unlimited(), Reaper::Anyone)
            .any
    }

    /// As [`Self::reap`], in an interrupt: only as much as `budget` allows. A work item handles the
    /// rest, for which no interrupt comes. Returns whether there may have been a used entry.
    pub(crate) fn reap_after_interrupt(self, budget: &mut Budget) -> bool {
        // Another queue of the vector may have raised the interrupt.
        if !self.has_used() {
            return false;
        }
        if self.reap_within(budget, Reaper::Interrupt).more {
            self.recovery.reap_later();
        }
        true
    }

    /// As [`Self::reap`], until `budget` is spent.
    pub(super) fn reap_within(self, budget: &mut Budget, mut reaper: Reaper<'_>) -> Reaped {
        let mut reaped = Reaped::default();
        loop {
            let mut slots = Batch::new();
            let taken = self.take_used(&mut slots, &mut reaper);
            reaped.any |= taken.any;
            if slots.len() > 0 {
                self.complete_batch(&mut slots, budget);
            }
            reaped.broken |= taken.broken;
            if let Some(fault) = taken.fault {
                self.recovery
                    .queue_broken(self.device(), self.index(), fault);
            }
            if !taken.more {
                return reaped;
            }
            if budget.is_spent() {
                reaped.more = true;
                return reaped;
            }
            if matches!(reaper, Reaper::Interrupt) {
                // An interrupt counts once.
                reaper = Reaper::Anyone;
            }
        }
    }

    /// Moves used requests to `slots`, and wakes the threads that wait for their own request.
    #[inline(always)]
    fn take_used(self, slots: &mut Batch<KBox<Slot>>, reaper: &mut Reaper<'_>) -> Taken {
        let mut taken = Taken::default();
        let mut guard = self.queue.state.lock();
        let state = &mut *guard;
        // Before a request is completed, because a notified caller may submit at once. A thread
        // that prepares or completes a request does not wait for the interrupt.
        if matches!(reaper, Reaper::Interrupt)
            && state.ring.has_used()
            && !state.has_slots_outside_device()
        {
            self.policy.interrupted();
        }
        loop {
            let Some(place) = slots.vacant() else {
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
                        place.fill(slot);
                    }
                }
                Ok(None) => {
                    if let Reaper::Poller(poller) = reaper {
                        state.stop_poller(poller);
                    }
                    // Threads that wait for a slot of a polled queue need interrupts.
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

    /// Completes requests for which no thread of the driver waits: releases their pages, frees
    /// their slots, notifies their callers. Leaves no slot behind. Any context, no lock held.
    #[inline(always)]
    fn complete_batch(self, slots: &mut Batch<KBox<Slot>>, budget: &mut Budget) {
        let mut completed = Batch::new();
        for slot in slots.as_mut_slice() {
            budget.spend(slot.buffers.segments(), slot.buffers.length());
            if let Some(place) = completed.vacant() {
                place.fill(self.take_outcome(slot));
            }
        }
        self.free(slots.drain());
        for request in completed.drain() {
            request.complete();
        }
    }

    /// Reads the outcome of a request and releases its pages. The caller of the request is to be
    /// notified once the slot is free. Any context, no lock held.
    #[inline(always)]
    pub(super) fn take_outcome(self, slot: &mut Slot) -> CompletedRequest {
        let completion = replace(&mut slot.completion, Completion::Nobody);
        let completed = CompletedRequest::new(completion, &slot.buffers);
        if let Some(cleaned) = slot.release(self.device()) {
            cleaned.drop_later(&self.work);
        }
        completed
    }

    /// Releases the pages of a slot, and frees the slot. Returns pages that have to be made dirty
    /// before their release: to be dropped where the thread holds no lock and no `Guard` of the
    /// hardware. Any context, no lock held.
    pub(super) fn release(self, mut slot: KBox<Slot>) -> Option<CleanedPages> {
        let cleaned = slot.release(self.device());
        self.free(once(slot));
        cleaned
    }
}

/// The result of [`QueueRef::take_used`].
#[derive(Default)]
struct Taken {
    /// Whether the device had used any entry.
    any: bool,
    /// Whether there may be more used entries.
    more: bool,
    /// Whether the device has broken the queue.
    broken: bool,
    /// The way in which the device has just broken the queue, if that is to be reported.
    fault: Option<Fault>,
}

impl State {
    /// Accepts no more requests, because of `fault`. Returns `fault` to be reported, unless the
    /// queue accepts none already or its device is being reset.
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
