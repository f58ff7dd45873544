// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests: descriptor chains on their way from the available ring to the used ring.

use std::fmt;
use std::sync::Arc;

use crate::chain::{Buffer, Chain};
use crate::fault::Fault;
use crate::in_flight::Entry;
use crate::mailbox::Mailbox;
use crate::model::DeviceModel;

/// Contents of a [`Request`], allocated once and used again by its queue.
pub(crate) struct Body<D: DeviceModel> {
    pub(crate) queue: u16,
    /// Of which run of the queue the request is.
    pub(crate) run: u64,
    pub(crate) entry: Entry,
    pub(crate) chain: Chain,
    pub(crate) scratch: D::Scratch,
    /// It was submitted before, and yielded or was resumed.
    pub(crate) resumed: bool,
    pub(crate) mailbox: Arc<Mailbox<D>>,
}

/// How a request came back by the mailbox.
pub(crate) enum Returned<D: DeviceModel> {
    Completed(D::Outcome),
    /// To be submitted again.
    Resumed,
    /// Dropped without an outcome.
    Dropped,
}

/// A descriptor chain that the device owes an answer. Whoever has it completes it, exactly
/// once:
///
/// - on the worker, by returning it from [`DeviceModel::submit`], without an allocation or
///   an atomic operation;
/// - at any later time, on any thread, by [`Self::complete`].
///
/// A device that needs the worker again before it can complete a request, for guest memory
/// or for its next step, calls [`Self::resume`] on any thread.
///
/// Requests of a queue may be completed in any order. One that is dropped is completed with
/// [`DeviceModel::dropped`]. One that is completed after its queue was stopped or broken
/// changes nothing: the driver hears of it no more.
pub struct Request<D: DeviceModel> {
    /// # Invariants
    ///
    /// `None` only within a method that consumes the request.
    body: Option<Box<Body<D>>>,
}

impl<D: DeviceModel> fmt::Debug for Request<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        f.debug_struct("Request")
            .field("queue", &body.queue)
            .field("entry", &body.entry)
            .finish_non_exhaustive()
    }
}

impl<D: DeviceModel> Request<D> {
    pub(crate) fn new(body: Box<Body<D>>) -> Self {
        Self { body: Some(body) }
    }

    fn body(&self) -> &Body<D> {
        // PANIC: by the invariant.
        self.body.as_ref().expect("a request has a body")
    }

    pub(crate) fn body_mut(&mut self) -> &mut Body<D> {
        // PANIC: by the invariant.
        self.body.as_mut().expect("a request has a body")
    }

    /// Takes the request apart without completing it.
    pub(crate) fn into_body(mut self) -> Box<Body<D>> {
        // PANIC: by the invariant.
        self.body.take().expect("a request has a body")
    }

    /// The queue that the request came from.
    pub fn queue(&self) -> u16 {
        self.body().queue
    }

    /// Whether this is the request of this entry, of this run of a queue.
    pub(crate) fn is(&self, queue: u16, run: u64, entry: Entry) -> bool {
        let body = self.body();
        body.queue == queue && body.run == run && body.entry == entry
    }

    pub(crate) fn entry(&self) -> Entry {
        self.body().entry
    }

    /// Whether the request yielded when it was last submitted, or was resumed since, and goes
    /// on. Otherwise what the device keeps with it is that of an earlier request.
    pub fn is_resumed(&self) -> bool {
        self.body().resumed
    }

    /// The buffers of the chain, as the driver described them.
    pub fn buffers(&self) -> &[Buffer] {
        self.body().chain.buffers()
    }

    /// Whatever the device keeps with the request.
    pub fn scratch(&self) -> &D::Scratch {
        &self.body().scratch
    }

    /// The buffers, and what the device keeps with the request.
    pub fn parts(&mut self) -> (&[Buffer], &mut D::Scratch) {
        let body = self.body_mut();
        (body.chain.buffers(), &mut body.scratch)
    }

    /// Completes the request from any thread. The worker of its queue writes the answer.
    /// Never blocks.
    pub fn complete(self, outcome: D::Outcome) {
        let body = self.into_body();
        let mailbox = Arc::clone(&body.mailbox);
        mailbox.give_back(body, Returned::Completed(outcome));
    }

    /// Has the worker of its queue submit the request again, from any thread. Never blocks.
    /// If the queue was stopped meanwhile, nothing happens: the request is submitted anew
    /// when the queue goes on.
    pub fn resume(self) {
        let body = self.into_body();
        let mailbox = Arc::clone(&body.mailbox);
        mailbox.give_back(body, Returned::Resumed);
    }
}

impl<D: DeviceModel> Drop for Request<D> {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            let mailbox = Arc::clone(&body.mailbox);
            mailbox.give_back(body, Returned::Dropped);
        }
    }
}

/// What became of a request that was submitted.
#[derive(Debug)]
pub enum Submission<D: DeviceModel> {
    /// It is done.
    Completed(Request<D>, D::Outcome),
    /// The device has kept it, to complete or resume it later. A queue that is stopped
    /// meanwhile submits it anew when it goes on, so whatever was done of it must bear
    /// repetition.
    Deferred,
    /// One step of it is done; it is submitted again soon. A queue that is stopped meanwhile
    /// submits it anew when it goes on, so each of its steps must bear repetition.
    Yielded(Request<D>),
    /// It cannot be answered: the queue is broken.
    Fault(Request<D>, Fault),
}
