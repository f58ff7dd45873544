// SPDX-License-Identifier: GPL-2.0

//! Acquiring slots.

use super::{
    request::AcquiredSlot,
    state::{
        Queue,
        QueueRef, //
    }, //
};
use crate::abstractions::task::wait::Signals;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    }, //
};

/// Time to wait for room in the DMA layer before the driver tries again, in milliseconds. No
/// notification tells the driver that another device has freed such room. The value is that of
/// `BLK_MQ_RESOURCE_DELAY` in `block/blk-mq.c`.
const DMA_ROOM_MS: Msecs = 3;

impl<'a> QueueRef<'a> {
    /// Takes a slot if one is free and no thread waits for one. Any context.
    ///
    /// `EAGAIN` otherwise; after [`Queue::stop`], its error.
    #[inline(always)]
    pub(crate) fn try_acquire(self) -> Result<AcquiredSlot<'a>> {
        let mut state = self.queue.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        if state.waiting > 0 {
            return Err(EAGAIN);
        }
        let slot = state.take_free().ok_or(EAGAIN)?;
        Ok(AcquiredSlot::new(self, slot))
    }

    /// Takes up to `count` slots, if no thread waits for one; exactly `count` if `all`. May sleep
    /// for memory, but not for a slot.
    ///
    /// `EAGAIN` if there are too few; after [`Queue::stop`], its error.
    pub(crate) fn try_acquire_several(
        self,
        count: usize,
        all: bool,
    ) -> Result<KVec<AcquiredSlot<'a>>> {
        let mut slots = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut state = self.queue.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        let free = state.free_slots().min(count);
        if state.waiting > 0 || free == 0 || all && free < count {
            return Err(EAGAIN);
        }
        for _ in 0..free {
            if let Some(slot) = state.take_free() {
                // `slots` has capacity for all of them.
                let _ = slots.push_within_capacity(AcquiredSlot::new(self, slot));
            }
        }
        Ok(slots)
    }

    /// Takes a slot, in the order of the callers. Sleeps. On a polled queue the caller also
    /// completes the requests that the device has completed, because no other thread may do so: the
    /// submitters of polled requests need not call `iopoll` again. While a thread waits, the queue
    /// has interrupts.
    ///
    /// `ERESTARTSYS` or `EINTR` after one of these `signals`; after [`Queue::stop`], its error.
    pub(crate) fn acquire(self, signals: Signals) -> Result<AcquiredSlot<'a>> {
        match self.try_acquire() {
            Err(error) if error == EAGAIN => {}
            result => return result,
        }
        let queue = self.queue;
        let mut state = queue.state.lock();
        state.waiting += 1;
        // A woken thread takes a slot before any other caller can: later callers see `waiting`, and
        // the wait queue wakes in order.
        let slot = loop {
            if let Some(error) = state.failed {
                break Err(error);
            }
            // Only the first waiter may take a slot before it has been woken.
            if state.waiting == 1 {
                if let Some(slot) = state.take_free() {
                    break Ok(slot);
                }
            }
            if queue.polled && state.ring.enable_interrupts() {
                // The device may send no interrupt for entries that are used already.
                drop(state);
                self.reap();
                state = queue.state.lock();
                // Out of turn if need be: the wake-up for this slot came while nobody slept, and
                // the next waiter is woken by whoever takes one.
                if state.failed.is_none() {
                    if let Some(slot) = state.take_free() {
                        break Ok(slot);
                    }
                }
                continue;
            }
            let waited = queue.slot_freed.wait(signals, None, || drop(state));
            state = queue.state.lock();
            if let Err(error) = waited {
                break Err(error);
            }
            if let Some(slot) = state.take_free() {
                break Ok(slot);
            }
        };
        state.waiting -= 1;
        let more = state.free_slots() > 0;
        if state.waiting > 0 && more {
            // The wake-up may have come to a thread that returns without a slot.
            queue.slot_freed.notify_one();
        }
        let room = state.waiting == 0 && more;
        drop(state);
        if room {
            queue.pollers.notify();
        }
        slot.map(|slot| AcquiredSlot::new(self, slot))
    }
}

impl Queue {
    /// Waits until the DMA layer may have room again: a request has completed, or [`DMA_ROOM_MS`]
    /// have passed. Sleeps. The caller must have nothing mapped. Errors as of
    /// [`QueueRef::acquire`].
    pub(crate) fn wait_for_dma_room(&self, signals: Signals) -> Result {
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        state.waiting_for_dma += 1;
        let timeout = msecs_to_jiffies(DMA_ROOM_MS);
        let waited = self.dma_freed.wait(signals, Some(timeout), || drop(state));
        state = self.state.lock();
        state.waiting_for_dma -= 1;
        match state.failed {
            Some(error) => Err(error),
            None => waited,
        }
    }

    /// Whether [`QueueRef::try_acquire`] would find a slot; after [`Self::stop`], its error. Any
    /// context.
    pub(crate) fn has_room(&self) -> Result<bool> {
        let state = self.state.lock();
        match state.failed {
            Some(error) => Err(error),
            None => Ok(state.waiting == 0 && state.free_slots() > 0),
        }
    }
}
