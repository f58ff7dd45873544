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
        Queue,
        State, //
    },
    slot::{
        Owner,
        Slot, //
    }, //
};
use crate::{
    abstractions::spin,
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

/// What is to be done after requests were submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Notify the device: the requests take long.
    Notify,
    /// Notify it and look for the end of the requests.
    Poll,
}

impl Effort {
    /// How long to look for the end of what was submitted to `queue`, if at all; `most`
    /// is the user's choice. To be asked once for each notification.
    pub(crate) fn limit(self, most: Option<Delta>, queue: &Queue) -> Option<Delta> {
        match self {
            Self::Notify => None,
            Self::Poll => queue.poll_limit(most),
        }
    }
}

impl Queue {
    /// How long to look for the end of what is submitted now, at most `limit`; `None`
    /// where that does not pay. To be asked once for each notification.
    fn poll_limit(&self, limit: Option<Delta>) -> Option<Delta> {
        limit.filter(|_| self.polling.pays())
    }

    /// Notifies the device of what was submitted, if it wants to know, and ends
    /// requests as [`Self::reap`] does until those that are in flight now have ended,
    /// at most for `limit`. Task context; does not sleep.
    pub(crate) fn notify_and_poll(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        limit: Delta,
    ) -> Reaped {
        let mut state = self.state.lock();
        let wanted = state.begin_polling();
        let target = state.ring.pushed();
        drop(state);
        if wanted {
            self.ring_doorbell(transport, device);
        }
        let mut seen = self.poll_until(device, limit, target);
        let more = self.state.lock().end_polling();
        if more {
            seen.add(self.reap(device));
        }
        seen
    }

    /// Gives a request to the device, and looks for its end as
    /// [`Self::notify_and_poll`] does. Returns what was seen, and the slot if the
    /// request has ended. Otherwise that is still to come, and then the `owner` is told,
    /// who is asked for only now. Task context; does not sleep.
    ///
    /// On an error nothing was submitted.
    pub(crate) fn submit_and_poll(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        mut request: AcquiredSlot<'_>,
        limit: Delta,
        owner: impl FnOnce() -> Owner,
    ) -> Result<(Reaped, Option<KBox<Slot>>)> {
        request.set_owner(Owner::Submitter);
        let slot = request.into_inner().ok_or(EIO)?;
        let (entry, segments) = (usize::from(slot.entry()), slot.segments());

        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            drop(state);
            let _ = self.let_go(device, slot);
            return Err(error);
        }
        state.put_in_flight(slot);
        // The ring has a place for its own index.
        let _ = state.ring.publish();
        let wanted = state.begin_polling();
        let target = state.ring.pushed();
        drop(state);
        self.count(1, segments as u64);
        if wanted {
            self.ring_doorbell(transport, device);
        }
        let mut seen = self.poll_until(device, limit, target);

        let mut state = self.state.lock();
        if state.end_polling() {
            drop(state);
            seen.add(self.reap(device));
            state = self.state.lock();
        }
        let place = state.entries.get_mut(entry).ok_or(EIO)?;
        match core::mem::replace(place, Entry::Idle) {
            Entry::Done(slot) => Ok((seen, Some(slot))),
            Entry::InFlight(mut slot) => {
                slot.owner = owner();
                *place = Entry::InFlight(slot);
                Ok((seen, None))
            }
            // Nobody else takes what is done.
            Entry::Idle => Err(EIO),
        }
    }

    /// Ends requests until as many were used as had been pushed up to `target`.
    fn poll_until(&self, device: &pci::Device<Bound>, limit: Delta, target: u16) -> Reaped {
        let mut seen = Reaped::default();
        let mut last = None;
        let found = spin::poll(limit, || {
            // Without the lock, so that those who have something to do get it.
            let index = used_index(self.used_ring()).ok();
            if index == last {
                return false;
            }
            last = index;
            seen.add(self.reap(device));
            seen.fault.is_some() || seen.has_taken(target)
        });
        self.polling.learn(found);
        seen
    }
}

impl State {
    /// Asks for no interrupts while somebody looks for what was pushed. Returns
    /// whether the device wants to be notified of that.
    fn begin_polling(&mut self) -> bool {
        self.busy_pollers += 1;
        // The ring has a place for what is asked.
        let _ = self.ring.disable_interrupts();
        // When in doubt, yes.
        self.ring.wants_notification().unwrap_or(true)
    }

    /// Asks for interrupts if nobody else looks. Returns whether something was used
    /// meanwhile: no interrupt may come for it, and the caller has to reap.
    fn end_polling(&mut self) -> bool {
        self.busy_pollers -= 1;
        self.busy_pollers == 0 && self.ring.enable_interrupts().unwrap_or(false)
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
