// SPDX-License-Identifier: GPL-2.0

//! A read or write call that takes several requests.

use super::slot::Outcome;
use crate::abstractions::{
    kiocb::QueuedKiocb,
    wait::Waiter, //
};
use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        Arc,
        SpinLockIrq, //
    }, //
};

struct State {
    /// Requests that have not ended, and the submitter while it is at work.
    outstanding: usize,
    /// Bytes submitted, once the submitter is done.
    submitted: usize,
    /// The failure nearest to the start: how many bytes before it went through,
    /// and what it was.
    failure: Option<(usize, Error)>,
    kiocb: Option<QueuedKiocb>,
}

/// The call. Each of its requests holds a reference, and so does the submitter.
#[pin_data]
pub(crate) struct Operation {
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    waiter: Waiter,
}

impl Operation {
    /// A call that has submitted nothing yet. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock_irq!(State {
                    outstanding: 1,
                    submitted: 0,
                    failure: None,
                    kiocb: None,
                }),
                waiter <- Waiter::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the call an asynchronous one: `kiocb` is completed at the end, and
    /// nobody waits. To be called before the first request is submitted.
    pub(crate) fn complete_later(&self, kiocb: QueuedKiocb) {
        self.state.lock().kiocb = Some(kiocb);
    }

    /// `count` more requests are about to be submitted. Any context.
    pub(crate) fn add_parts(&self, count: usize) {
        self.state.lock().outstanding += count;
    }

    /// `count` requests that were added are not submitted after all. The submitter
    /// is still at work.
    pub(crate) fn cancel_parts(&self, count: usize) {
        self.state.lock().outstanding -= count;
    }

    /// A request that begins `start` bytes into the call has ended. Any context, no
    /// lock held.
    pub(super) fn part_done(&self, start: usize, outcome: Outcome) {
        let mut state = self.state.lock();
        if let Some(error) = outcome.error {
            let at = start + outcome.bytes;
            if state.failure.is_none_or(|(known, _)| at < known) {
                state.failure = Some((at, error));
            }
        }
        self.leave(state);
    }

    /// All requests have been submitted, `submitted` bytes in all; `error` is what
    /// kept the rest from being so. No lock held.
    pub(crate) fn submitted(&self, submitted: usize, error: Option<Error>) {
        let mut state = self.state.lock();
        state.submitted = submitted;
        if let Some(error) = error {
            if state.failure.is_none_or(|(known, _)| submitted < known) {
                state.failure = Some((submitted, error));
            }
        }
        self.leave(state);
    }

    fn leave(&self, mut state: impl core::ops::DerefMut<Target = State>) {
        state.outstanding -= 1;
        if state.outstanding > 0 {
            return;
        }
        let outcome = Self::outcome(&state);
        let kiocb = state.kiocb.take();
        drop(state);
        match kiocb {
            Some(kiocb) => kiocb.complete(outcome.into_result()),
            None => self.waiter.complete(),
        }
    }

    fn outcome(state: &State) -> Outcome {
        match state.failure {
            Some((bytes, error)) => Outcome {
                bytes,
                error: Some(error),
            },
            None => Outcome {
                bytes: state.submitted,
                error: None,
            },
        }
    }

    /// Waits for the end of a synchronous call. Sleeps. `EINTR` when killed: the
    /// requests go on and let go of their pages by themselves.
    pub(crate) fn wait(&self) -> Result<usize> {
        self.waiter.wait_killable()?;
        Self::outcome(&self.state.lock()).into_result()
    }
}
