// SPDX-License-Identifier: GPL-2.0

//! Submitting requests to the device.

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
    /// Leaves a request in flight without a caller, as `_left` permits. Its end notifies nobody.
    fn leave<Left>(&mut self, entry: EntryId, _left: &Left) {
        if let Entry::InFlight(slot) = &mut self.entries[entry] {
            slot.completion = Completion::Nobody;
        }
    }
}

impl QueueRef<'_> {
    /// Submits the requests; [`Self::notify`] has to follow. Any context.
    ///
    /// After an error all requests stay with the caller; `EINVAL` if one has a slot of another
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

    /// Notifies the device of the submitted requests, if it requested that. Any context.
    pub(crate) fn notify(self) {
        let wanted = self.queue.state.lock().ring.wants_notification();
        if wanted {
            self.ring_doorbell();
        }
    }

    /// Notifies the device of the submitted requests, if it requested that, and then follows
    /// `strategy`. Task context, no lock held; does not sleep.
    pub(crate) fn kick(self, strategy: WaitStrategy) {
        match self.poll_time(strategy, false) {
            Some(time) => self.notify_and_poll(time),
            None => self.notify_and_reap(self.queue.state.lock()),
        }
    }

    /// Busy-poll time after this doorbell; see [`PollPolicy::poll_time`].
    ///
    /// [`PollPolicy::poll_time`]: super::poll_policy::PollPolicy::poll_time
    #[inline]
    fn poll_time(self, strategy: WaitStrategy, waits: bool) -> Option<Delta> {
        self.policy.poll_time(strategy, waits, || {
            self.queue.state.lock().ring.is_awaited()
        })
    }

    /// Notifies the device, if it requested that, and completes requests that were used meanwhile.
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
    /// Submits the request; [`QueueRef::notify`] has to follow. `caller` becomes the completion of
    /// the request. Any context, no lock held.
    ///
    /// An error returns the caller; then the request was dropped and its slot is free again.
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
            // Not under the lock, because dropping the request takes it.
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

    /// Submits a request and returns its slot when it has completed: busy-polls for the completion
    /// as `strategy` says, then waits. Sleeps.
    ///
    /// `wait` may return early if the request can stay in flight without a caller: then the request
    /// releases its pages when it completes. The error of `wait` is the result, and is the only
    /// permission to leave the request.
    fn execute<Left: Into<Error>>(
        self,
        strategy: WaitStrategy,
        wait: impl Fn(&KernelCompletion) -> Result<(), Left>,
    ) -> Result<KBox<Slot>> {
        let queue = self.queue();
        let entry = self.slot().entry();
        let waiter = self.slot().waiter().clone();
        // An earlier thread that was killed may have left a wake-up behind.
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
    /// Submits a transfer, and then follows `strategy`. Task context, no lock held; does not sleep.
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

    /// Executes a transfer and waits for its end. Sleeps. Errors as of the transfer; `EINTR` when
    /// killed in the meantime, if the request owns its pages.
    ///
    /// Also returns pages that are to be dropped once the caller has released the hardware.
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
    /// Executes a command and waits for its end, at most `timeout` if there is one. Sleeps. Returns
    /// the result of the command.
    pub(crate) fn execute(self, timeout: Option<Jiffies>) -> Result<u64> {
        let wait = |waiter: &KernelCompletion| match timeout {
            Some(timeout) => waiter.wait_timeout(timeout),
            None => waiter.wait_killable(),
        };
        let request = self.for_caller();
        let queue = request.queue();
        let slot = request.execute(WaitStrategy::Interrupt, wait)?;
        let outcome = slot.buffers.command_outcome();
        // A command has no pages.
        drop(queue.release(slot));
        outcome
    }
}
