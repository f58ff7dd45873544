// SPDX-License-Identifier: GPL-2.0

//! Giving requests to the device.

use super::{
    busy_poll::Polled,
    completion::{
        Caller,
        Completion,
        Waiting, //
    },
    poll_policy::WaitStrategy,
    request::{
        Command,
        Request,
        Transfer, //
    },
    slot::Slot,
    state::{
        Entry,
        QueueRef,
        State, //
    }, //
};
use crate::{
    abstractions::{
        dma::segments::{
            CleanedPages,
            Ownership, //
        },
        fs::kiocb::{
            AsyncKiocb,
            IoReturn, //
        },
        task::wait::KernelCompletion, //
    },
    virtio::ring::EntryId, //
};
use core::ptr;
use kernel::{
    prelude::*,
    sync::SpinLockIrqGuard,
    time::{
        Delta,
        Jiffies, //
    }, //
};

impl State {
    /// Leaves a request to itself, as `_left` permits. Nobody is told of its end.
    fn leave<Left>(&mut self, entry: EntryId, _left: &Left) {
        if let Entry::InFlight(slot) = &mut self.entries[entry] {
            slot.completion = Completion::Nobody;
        }
    }
}

impl QueueRef<'_> {
    /// Gives the requests to the device; [`Self::notify`] has to follow. Any context.
    ///
    /// On an error all requests stay with the caller; `EINVAL` where one has a slot of another
    /// queue.
    pub(crate) fn submit_all(self, requests: &mut KVec<Request<'_>>) -> Result {
        if !requests
            .iter()
            .all(|request| ptr::eq(request.queue().queue, self.queue))
        {
            return Err(EINVAL);
        }
        let mut state = self.queue.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        let count = requests.len() as u64;
        let mut segments = 0;
        for request in requests.drain_all() {
            let slot = request.into_inner();
            segments += slot.buffers.segments() as u64;
            state.put_in_flight(slot);
        }
        state.ring.publish();
        drop(state);
        self.count(count, segments);
        Ok(())
    }

    /// Notifies the device of what was submitted, if it wants to know. Any context.
    pub(crate) fn notify(self) {
        let wanted = self.queue.state.lock().ring.wants_notification();
        if wanted {
            self.ring_doorbell();
        }
    }

    /// Notifies the device of what was submitted, if it wants to know, and does what is
    /// worthwhile then. Task context, no lock held; does not sleep.
    pub(crate) fn kick(self, strategy: WaitStrategy) {
        match self.poll_time(strategy, false) {
            Some(time) => self.notify_and_poll(time),
            None => self.notify_and_reap(self.queue.state.lock()),
        }
    }

    /// How long to busy-poll after this doorbell; see [`PollPolicy::poll_time`].
    ///
    /// [`PollPolicy::poll_time`]: super::poll_policy::PollPolicy::poll_time
    #[inline]
    fn poll_time(self, strategy: WaitStrategy, waits: bool) -> Option<Delta> {
        self.policy.poll_time(strategy, waits, || {
            self.queue.state.lock().ring.is_awaited()
        })
    }

    /// Notifies the device, if it wants to know, and ends what it has used in the meantime.
    #[inline(always)]
    fn notify_and_reap(self, mut state: SpinLockIrqGuard<'_, State>) {
        let wanted = state.ring.wants_notification();
        let used = !self.polled && state.ring.has_used();
        drop(state);
        if wanted {
            self.ring_doorbell();
        }
        if used {
            self.reap();
        }
    }
}

impl<'a> Request<'a> {
    /// Gives the request to the device; [`QueueRef::notify`] has to follow. `caller` becomes
    /// its completion. Any context, no lock held.
    ///
    /// On an error the caller comes back, and the request was given up.
    pub(crate) fn submit<C: Caller>(self, caller: C) -> Result<C::Return, (Error, C)> {
        self.submit_locked(caller).map(|(answer, _)| answer)
    }

    /// Puts one request in flight and publishes it.
    #[inline(always)]
    fn submit_locked<C: Caller>(
        self,
        caller: C,
    ) -> Result<(C::Return, SpinLockIrqGuard<'a, State>), (Error, C)> {
        let queue = self.queue();
        let mut state = queue.queue.state.lock();
        if let Some(error) = state.failed {
            // Not under the lock: the request goes back to it.
            drop(state);
            drop(self);
            return Err((error, caller));
        }
        let mut slot = self.into_inner();
        let (completion, answer) = caller.queue();
        slot.completion = completion;
        queue.count(1, slot.buffers.segments() as u64);
        state.put_in_flight(slot);
        state.ring.publish();
        Ok((answer, state))
    }

    /// Gives a request to the device and returns its slot when it has ended: busy-polls for
    /// that as `strategy` says, then waits. Sleeps.
    ///
    /// `wait` returns early where the request can be left to itself: then it goes on, and
    /// gives back its pages by itself. Its error is the result, and only that makes it
    /// possible to leave.
    fn execute<Left: Into<Error>>(
        self,
        strategy: WaitStrategy,
        wait: impl Fn(&KernelCompletion) -> Result<(), Left>,
    ) -> Result<KBox<Slot>> {
        let queue = self.queue();
        let entry = self.slot().entry();
        let waiter = self.slot().waiter().clone();
        // A killed predecessor may have left a wake-up behind.
        waiter.reinit();
        match queue.poll_time(strategy, true) {
            Some(time) => match self
                .submit_and_poll(time, Waiting)
                .map_err(|(error, Waiting)| error)?
            {
                Polled::Completed(slot, Waiting) => return Ok(slot),
                Polled::Queued(()) => {}
            },
            None => {
                self.submit(Waiting).map_err(|(error, Waiting)| error)?;
                queue.notify();
            }
        }
        loop {
            let waited = wait(&waiter);
            let mut state = queue.queue.state.lock();
            if let Some(ended) = state.take_done(entry) {
                return ended;
            }
            if let Err(left) = waited {
                state.leave(entry, &left);
                return Err(left.into());
            }
        }
    }
}

impl<O: Ownership> Transfer<'_, O> {
    /// Gives a transfer to the device, and does what is worthwhile after the doorbell. Task
    /// context, no lock held; does not sleep.
    pub(crate) fn submit<'call>(
        self,
        kiocb: AsyncKiocb<'call>,
        strategy: WaitStrategy,
    ) -> IoReturn<'call> {
        let request = self.for_caller();
        let queue = request.queue();
        let submitted = match queue.poll_time(strategy, false) {
            Some(time) => request.submit_and_poll(time, kiocb),
            None => request.submit_locked(kiocb).map(|(answer, state)| {
                queue.notify_and_reap(state);
                Polled::Queued(answer)
            }),
        };
        match submitted {
            Ok(Polled::Queued(answer)) => answer,
            Ok(Polled::Completed(slot, kiocb)) => {
                let outcome = slot.buffers.transfer_outcome();
                if let Some(cleaned) = queue.release(slot) {
                    cleaned.drop_later(&queue.work);
                }
                kiocb.done(outcome.into_result())
            }
            Err((error, kiocb)) => kiocb.done(Err(error)),
        }
    }

    /// Executes a transfer and waits for its end. Sleeps. Errors as of the transfer;
    /// `EINTR` when killed in the meantime, if the request owns its pages.
    ///
    /// Returns pages as well that are to be dropped once the caller has left the device.
    pub(crate) fn execute(self, strategy: WaitStrategy) -> (Result<usize>, Option<CleanedPages>) {
        let request = self.for_caller();
        let queue = request.queue();
        match request.execute(strategy, O::wait) {
            Ok(slot) => {
                let outcome = slot.buffers.transfer_outcome();
                (outcome.into_result(), queue.release(slot))
            }
            Err(error) => (Err(error), None),
        }
    }
}

impl Command<'_> {
    /// Executes a command and waits for its end, at most `timeout` if there is one.
    /// Sleeps. Returns the value of the command.
    pub(crate) fn execute(self, timeout: Option<Jiffies>) -> Result<u64> {
        let wait = |waiter: &KernelCompletion| match timeout {
            Some(timeout) => waiter.wait_timeout(timeout),
            None => waiter.wait_killable(),
        };
        let request = self.for_caller();
        let queue = request.queue();
        let slot = request.execute(WaitStrategy::Interrupt, wait)?;
        let outcome = slot.buffers.command_outcome();
        // It has no pages.
        drop(queue.release(slot));
        outcome
    }
}
