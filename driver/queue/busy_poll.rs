// SPDX-License-Identifier: GPL-2.0

//! Busy-polling for the end of requests that were just submitted.

use super::{
    completion::{
        Caller,
        Completion, //
    },
    reap::{
        Budget,
        Poller,
        Reaper, //
    },
    request::Request,
    slot::Slot,
    state::{
        Entry,
        QueueRef, //
    }, //
};
use crate::abstractions::task::spin::{
    self,
    NoPreemption, //
};
use kernel::{
    prelude::*,
    time::Delta, //
};

/// How far a request got while its submitter busy-polled for its end.
pub(super) enum Polled<C: Caller> {
    /// It has ended, and the caller never became its completion.
    Completed(KBox<Slot>, C),
    /// It has not, and the caller is its completion.
    Queued(C::Return),
}

impl QueueRef<'_> {
    /// Notifies the device of what was submitted, if it wants to know, and ends
    /// requests as [`Self::reap`] does until those that are in flight now have ended,
    /// at most for `limit`. Task context, no lock held; does not sleep.
    pub(super) fn notify_and_poll(self, limit: Delta) {
        let guard = NoPreemption::new();
        let mut state = self.queue.state.lock();
        let mut poller = state.begin_polling(None);
        let wanted = state.ring.wants_notification();
        drop(state);
        if wanted {
            self.ring_doorbell();
        }
        let mut more = self.poll_until(limit, &mut poller, &guard);
        if poller.is_polling {
            more |= self.queue.state.lock().end_polling(&mut poller);
        }
        drop(guard);
        if more {
            self.reap();
        }
    }

    /// Ends requests until all that had been pushed when `poller` began were used, or there
    /// are more than may be ended by somebody who is not preempted; the latter is returned.
    fn poll_until(self, limit: Delta, poller: &mut Poller, guard: &NoPreemption) -> bool {
        let mut last = None;
        let mut more = false;
        let hit = spin::poll(guard, limit, || {
            // Without the lock, so that those who have something to do get it.
            let index = self.used_index();
            if last == Some(index) {
                return false;
            }
            last = Some(index);
            let seen = self.reap_within(&mut Budget::for_interrupt(), Reaper::Poller(poller));
            more |= seen.more;
            seen.broken || seen.more || !poller.is_polling
        });
        self.policy.polled(hit);
        more
    }
}

impl Request<'_> {
    /// Gives a request to the device, and busy-polls for its end as
    /// [`QueueRef::notify_and_poll`] does. Returns how far the request got: only if its end is
    /// still to come, `caller` becomes its completion. Task context, no lock held; does not
    /// sleep.
    ///
    /// On an error nothing was submitted, and the request was given up.
    pub(super) fn submit_and_poll<C: Caller>(
        mut self,
        limit: Delta,
        caller: C,
    ) -> Result<Polled<C>, (Error, C)> {
        self.set_completion(Completion::Submitter);
        let queue = self.queue();
        let slot = self.slot();
        let (entry, segments) = (slot.entry(), slot.buffers.segments());

        let guard = NoPreemption::new();
        let mut state = queue.queue.state.lock();
        if let Some(error) = state.failed {
            // Not under the lock: the request goes back to it.
            drop(state);
            return Err((error, caller));
        }
        state.put_in_flight(self.into_inner());
        state.ring.publish();
        let mut poller = state.begin_polling(Some(entry));
        let wanted = state.ring.wants_notification();
        drop(state);
        queue.count(1, segments as u64);
        if wanted {
            queue.ring_doorbell();
        }
        let more = queue.poll_until(limit, &mut poller, &guard);
        let ended = match poller.ended.take() {
            Some(ended) => {
                drop(guard);
                if more {
                    // No interrupt comes for it.
                    queue.reap();
                }
                ended
            }
            None => {
                let mut state = queue.queue.state.lock();
                if more | state.end_polling(&mut poller) {
                    drop(state);
                    drop(guard);
                    queue.reap();
                    state = queue.queue.state.lock();
                }
                match state.take_done(entry) {
                    Some(ended) => ended,
                    None => {
                        let (completion, answer) = caller.queue();
                        // What has not ended is in flight.
                        if let Entry::InFlight(slot) = &mut state.entries[entry] {
                            slot.completion = completion;
                        }
                        return Ok(Polled::Queued(answer));
                    }
                }
            }
        };
        match ended {
            Ok(slot) => Ok(Polled::Completed(slot, caller)),
            Err(error) => Err((error, caller)),
        }
    }
}
