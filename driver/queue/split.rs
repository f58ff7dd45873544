// SPDX-License-Identifier: GPL-2.0

//! A read or write call of several requests.

use super::buffers::Outcome;
use crate::abstractions::{
    dma::segments::Ownership,
    fs::kiocb::QueuedKiocb,
    task::wait::KernelCompletion, //
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
    /// Number of requests that have not completed, plus one while the submitter is at work.
    outstanding: usize,
    /// Number of bytes submitted, once the submitter has finished.
    submitted: usize,
    /// The failure nearest to the start of the call: the number of bytes before it, and the error.
    failure: Option<(usize, Error)>,
    kiocb: Option<QueuedKiocb>,
}

/// The call. Each of its requests has a [`SplitPart`] until its pages were released, and the
/// submitter counts as one request while it prepares requests: so the call completes last.
#[pin_data]
pub(crate) struct SplitTransfer {
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    waiter: KernelCompletion,
}

impl SplitTransfer {
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
                waiter <- KernelCompletion::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the call an asynchronous one: the last request completes `kiocb`, and no thread waits.
    /// To be called before the first request is submitted.
    pub(crate) fn complete_later(&self, kiocb: QueuedKiocb) {
        self.state.lock().kiocb = Some(kiocb);
    }

    /// Ends the submission: `submitted` bytes were submitted in all, and `error` is the reason why
    /// the rest was not. No lock held.
    pub(crate) fn submitted(&self, submitted: usize, error: Option<Error>) {
        let mut state = self.state.lock();
        state.submitted = submitted;
        if let Some(error) = error {
            // Takes precedence over the failure of requests that were prepared and then dropped for
            // this reason.
            if state.failure.is_none_or(|(known, _)| submitted <= known) {
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

    /// Waits for the end of a synchronous call with pages of `O`. Sleeps. `EINTR` when killed, if
    /// the requests own their pages: then the requests stay in flight, and release their pages when
    /// they complete.
    pub(crate) fn wait<O: Ownership>(&self) -> Result<usize> {
        O::wait(&self.waiter).map_err(Into::into)?;
        Self::outcome(&self.state.lock()).into_result()
    }
}

/// The part of one request in its call, which does not complete before this is dropped. A part that
/// is dropped without an outcome counts as an I/O error.
pub(crate) struct SplitPart {
    transfer: Arc<SplitTransfer>,
    /// Offset in the call at which the request begins, in bytes.
    start: usize,
    outcome: Outcome,
}

impl SplitPart {
    /// The part of a request that begins `start` bytes into the call. Any context.
    pub(crate) fn new(transfer: &Arc<SplitTransfer>, start: usize) -> Self {
        transfer.state.lock().outstanding += 1;
        Self {
            transfer: transfer.clone(),
            start,
            outcome: Outcome {
                bytes: 0,
                error: Some(EIO),
            },
        }
    }

    /// Sets the outcome of a request that has completed and released its pages. Any context, no
    /// lock held.
    pub(super) fn done(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for SplitPart {
    fn drop(&mut self) {
        let mut state = self.transfer.state.lock();
        if let Some(error) = self.outcome.error {
            let at = self.start + self.outcome.bytes;
            if state.failure.is_none_or(|(known, _)| at < known) {
                state.failure = Some((at, error));
            }
        }
        self.transfer.leave(state);
    }
}

#[kernel::macros::kunit_tests(ringbar_split)]
mod tests {
    use super::*;

    fn outstanding(transfer: &SplitTransfer) -> usize {
        transfer.state.lock().outstanding
    }

    fn result(transfer: &SplitTransfer) -> Result<usize> {
        SplitTransfer::outcome(&transfer.state.lock()).into_result()
    }

    fn whole(bytes: usize) -> Outcome {
        Outcome { bytes, error: None }
    }

    #[test]
    fn dr11_a_call_ends_after_the_last_of_its_requests() -> Result {
        let transfer = SplitTransfer::new()?;
        let first = SplitPart::new(&transfer, 0);
        // Prepared, but not submitted: the submitter fails before that.
        let second = SplitPart::new(&transfer, 10);
        transfer.submitted(10, Some(EAGAIN));
        assert_eq!(outstanding(&transfer), 2);
        first.done(whole(10));
        assert_eq!(outstanding(&transfer), 1);
        drop(second);
        assert_eq!(outstanding(&transfer), 0);
        assert_eq!(result(&transfer), Ok(10));
        Ok(())
    }

    #[test]
    fn the_error_of_the_submitter_comes_before_that_of_what_it_gave_up() -> Result {
        let transfer = SplitTransfer::new()?;
        drop(SplitPart::new(&transfer, 0));
        transfer.submitted(0, Some(ENODEV));
        assert_eq!(result(&transfer), Err(ENODEV));
        Ok(())
    }

    #[test]
    fn a_request_that_nobody_ends_is_an_error() -> Result {
        let transfer = SplitTransfer::new()?;
        let parts = [SplitPart::new(&transfer, 0), SplitPart::new(&transfer, 5)];
        transfer.submitted(10, None);
        for part in parts {
            drop(part);
        }
        assert_eq!(result(&transfer), Err(EIO));
        Ok(())
    }

    #[test]
    fn the_failure_nearest_to_the_start_counts() -> Result {
        let transfer = SplitTransfer::new()?;
        let parts = [0, 10, 20].map(|start| SplitPart::new(&transfer, start));
        transfer.submitted(30, None);
        let outcomes = [
            whole(10),
            Outcome {
                bytes: 3,
                error: Some(ENXIO),
            },
            Outcome {
                bytes: 0,
                error: Some(ENOSPC),
            },
        ];
        for (part, outcome) in parts.into_iter().zip(outcomes).rev() {
            part.done(outcome);
        }
        assert_eq!(result(&transfer), Ok(13));
        Ok(())
    }
}
