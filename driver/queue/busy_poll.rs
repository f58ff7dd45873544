// SPDX-License-Identifier: GPL-2.0

//! Busy-polling for the completion of requests that were just submitted.

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
    NoPreemption,
    PollResult, //
};
use kernel::{
    prelude::*,
    time::Delta, //
};

/// State of a request after its submitter has busy-polled.
pub(super) enum Polled<C: Caller> {
    /// The request has completed, and the caller never became its completion.
    Completed(KBox<Slot>, C),
    /// The request is in flight, and the caller is its completion.
    Queued(C::Return),
}

impl QueueRef<'_> {
    /// Notifies the device of the submitted requests, if the device requested that, and completes
    /// requests as [`Self::reap`] does until those that are in flight now have completed, at most
    /// for `limit`. Task context, no lock held; does not sleep.
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

    /// Completes requests until all that had been pushed when `poller` began are used, or until
    /// there are more than a thread may complete without being preempted. Returns whether there are
    /// more.
    fn poll_until(self, limit: Delta, poller: &mut Poller, guard: &NoPreemption) -> bool {
        let mut last = None;
        let mut more = false;
        let hit = spin::poll(guard, limit, || {
            // Without the lock, so that other users of the queue get it.
            let index = self.used_index();
            if last == Some(index) {
                return PollResult::Idle;
            }
            last = Some(index);
            let reaped = self.reap_within(&mut Budget::for_interrupt(), Reaper::Poller(poller));
            more |= reaped.more;
            if reaped.broken || reaped.more || !poller.is_polling {
                PollResult::Done
            } else {
                PollResult::Working
            }
        });
        self.policy.polled(hit);
        more
    }
}

impl Request<'_> {
    /// Submits a request, and busy-polls for its completion as [`QueueRef::notify_and_poll`] does.
    /// Returns the state of the request: `caller` becomes its completion only if the request has
    /// not completed by then. Task context, no lock held; does not sleep.
    ///
    /// After an error `caller` is not the completion: the request was not submitted and its slot is
    /// free again, or the device cannot be stopped and has the slot for ever.
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
            // Not under the lock, because dropping the request takes it.
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
                    // The device sends no interrupt for the rest.
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
                        // A request that has not completed is in flight.
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
