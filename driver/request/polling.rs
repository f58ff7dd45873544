// SPDX-License-Identifier: GPL-2.0

//! Whether it pays to look for the end of a request right after the notification,
//! instead of sleeping until the interrupt comes.
//!
//! An interrupt costs more than a small request takes: raising it, leaving the
//! idle state, waking the task. So whoever has notified the device looks at the
//! used ring for a while, with the interrupts of the queue off. That is lost time
//! where the request takes longer: it is large, or the device is busy or stopped.
//! Large ones are not looked for. And a queue that was looked at in vain is left
//! alone for a number of notifications that doubles each time.

use super::{
    acquired::AcquiredSlot,
    completion::Reaped,
    queue::{
        Entry,
        Queue, //
    },
    slot::{
        Outcome,
        Owner, //
    }, //
};
use crate::{
    abstractions::{
        kiocb::QueuedKiocb,
        spin, //
    },
    virtio::{
        ring::used_index,
        transport::Transport, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::Delta, //
};

/// The binary logarithm of the most notifications for which a queue is left alone.
const MAX_BACKOFF: u32 = 6;

/// What a queue has seen of late. Updated without a lock: a lost update is a wrong
/// guess at worst.
pub(super) struct Polling {
    /// Notifications to come that are left alone.
    skip: Atomic<u32>,
    /// How often in a row it was in vain, up to [`MAX_BACKOFF`].
    failures: Atomic<u32>,
}

impl Polling {
    /// For a queue that nothing is known of.
    pub(super) fn new() -> Self {
        Self {
            skip: Atomic::new(0),
            failures: Atomic::new(0),
        }
    }

    /// Whether to look after this notification. Asked once for each.
    pub(super) fn pays(&self) -> bool {
        let skip = self.skip.load(Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Relaxed);
        }
        skip == 0
    }

    /// What came of looking.
    pub(super) fn learn(&self, found: bool) {
        if found {
            // Mostly so already; then the cache line stays shared.
            if self.failures.load(Relaxed) != 0 {
                self.failures.store(0, Relaxed);
            }
            return;
        }
        let failures = (self.failures.load(Relaxed) + 1).min(MAX_BACKOFF);
        self.failures.store(failures, Relaxed);
        self.skip.store(1 << failures, Relaxed);
    }
}

/// What came of [`Queue::execute_soon`].
pub(crate) enum Soon {
    /// The request has ended: this is how, and whether its slot waits for
    /// [`Queue::release_deferred`].
    Ended(QueuedKiocb, Outcome, bool),
    /// It will be completed later.
    Later,
}

impl Queue {
    /// Notifies the device of what was submitted, if it wants to know. Then, if that
    /// pays, ends requests as [`Self::reap`] does until those that were in flight
    /// have ended, at most for `limit`. Task context; does not sleep.
    pub(crate) fn notify_and_poll(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        limit: Delta,
    ) -> Reaped {
        let mut seen = Reaped::default();
        if !self.polling.pays() {
            self.notify(transport, device);
            return seen;
        }
        let (target, wanted) = {
            let mut state = self.state.lock();
            state.busy_pollers += 1;
            // The ring has a place for what is asked.
            let _ = state.ring.disable_interrupts();
            (
                state.ring.pushed(),
                // When in doubt, yes.
                state.ring.wants_notification().unwrap_or(true),
            )
        };
        if wanted {
            self.ring_doorbell(transport, device);
        }
        let mut last = None;
        let found = spin::poll(limit, || {
            // Without the lock, so that those who have something to do get it.
            let index = used_index(self.used_ring()).ok();
            if index == last {
                return false;
            }
            last = index;
            seen.add(self.reap(device));
            seen.fault.is_some() || self.state.lock().ring.has_taken(target)
        });
        self.polling.learn(found);

        let more = {
            let mut state = self.state.lock();
            state.busy_pollers -= 1;
            state.busy_pollers == 0 && state.ring.enable_interrupts().unwrap_or(false)
        };
        if more {
            // No interrupt may come for what there is already.
            seen.add(self.reap(device));
        }
        seen
    }

    /// Gives a request of an asynchronous call to the device, which `notify` has to
    /// tell. Where it has ended when that returns, so has the call; otherwise it is
    /// completed later. Task context; does not sleep.
    ///
    /// On an error nothing was submitted, and the call comes back.
    pub(crate) fn execute_soon<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
        mut request: AcquiredSlot<'a>,
        queued: QueuedKiocb,
        notify: impl FnOnce(&Self),
    ) -> Result<Soon, (Error, QueuedKiocb)> {
        let Ok(slot) = request.slot_mut() else {
            return Err((EIO, queued));
        };
        slot.owner = Owner::Waiting;
        let entry = usize::from(slot.entry());
        if let Err((error, _)) = self.submit_one(request) {
            return Err((error, queued));
        }
        notify(self);

        let mut state = self.state.lock();
        let Some(place) = state.entries.get_mut(entry) else {
            return Err((EIO, queued));
        };
        match core::mem::replace(place, Entry::Idle) {
            Entry::Done(slot) => {
                drop(state);
                // Nobody has waited for the wake-up.
                slot.waiter().rearm();
                let outcome = slot.transfer_outcome();
                let deferred = self.let_go(device, slot);
                Ok(Soon::Ended(queued, outcome, deferred))
            }
            Entry::InFlight(mut slot) => {
                slot.owner = Owner::Kiocb(queued);
                *place = Entry::InFlight(slot);
                Ok(Soon::Later)
            }
            // Only this call takes what is done.
            Entry::Idle => Err((EIO, queued)),
        }
    }
}

#[kernel::macros::kunit_tests(ringbar_polling)]
mod tests {
    use super::*;

    /// How many notifications are left alone until the next look.
    fn skipped(polling: &Polling) -> u32 {
        let mut count = 0;
        while !polling.pays() {
            count += 1;
        }
        count
    }

    #[test]
    fn success_keeps_it_going() {
        let polling = Polling::new();
        for _ in 0..10 {
            assert_eq!(skipped(&polling), 0);
            polling.learn(true);
        }
    }

    #[test]
    fn failure_doubles_the_pause_up_to_a_limit() {
        let polling = Polling::new();
        for pause in [0, 2, 4, 8, 16, 32, 64, 64, 64] {
            assert_eq!(skipped(&polling), pause);
            polling.learn(false);
        }
        assert_eq!(skipped(&polling), 64);
        polling.learn(true);
        assert_eq!(skipped(&polling), 0);
        polling.learn(false);
        assert_eq!(skipped(&polling), 2);
    }
}
