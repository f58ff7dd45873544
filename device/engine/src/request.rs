// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests: descriptor chains on their way from the available ring to the used ring.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::chain::{Buffer, Chain};
use crate::fault::Fault;
use crate::in_flight::Entry;
use crate::mailbox::Mailbox;
use crate::record::QueueRecord;

/// Contents of a [`Request`], allocated once and used again by its queue.
pub(crate) struct Body<S, O> {
    pub(crate) queue: u16,
    /// Of which run of the queue the request is.
    pub(crate) run: u64,
    pub(crate) entry: Entry,
    /// When it was taken out of the available ring, if its latency is measured.
    pub(crate) taken: Option<Instant>,
    pub(crate) chain: Chain,
    pub(crate) scratch: S,
    /// It was submitted before, and yielded or was resumed.
    pub(crate) resumed: bool,
    /// The record of its queue.
    pub(crate) record: Option<QueueRecord>,
    pub(crate) mailbox: Arc<Mailbox<Returned<S, O>>>,
}

/// A request that came back by the mailbox.
pub(crate) type Returned<S, O> = (Box<Body<S, O>>, Return<O>);

/// How a request came back by the mailbox.
pub(crate) enum Return<O> {
    Completed(O),
    /// To be submitted again.
    Resumed,
    /// Dropped without an outcome.
    Dropped,
}

/// A descriptor chain that the device owes an answer. Whoever has it completes it, exactly
/// once:
///
/// - on the worker, by returning it from [`submit`], without an allocation or
///   an atomic operation;
/// - at any later time, on any thread, by [`Self::complete`].
///
/// A device that needs the worker again before it can complete a request, for guest memory
/// or for its next step, calls [`Self::resume`] on any thread.
///
/// Requests of a queue may be completed in any order. One that is dropped is completed with
/// [`dropped`]. One that is completed after its queue was stopped or broken
/// changes nothing: the driver hears of it no more.
///
/// `S` is what the device keeps with a request ([`Scratch`]), `O` what an answer is made of
/// ([`Outcome`]).
///
/// [`submit`]: crate::DeviceModel::submit
/// [`dropped`]: crate::DeviceModel::dropped
/// [`Scratch`]: crate::DeviceModel::Scratch
/// [`Outcome`]: crate::DeviceModel::Outcome
pub struct Request<S, O> {
    /// # Invariants
    ///
    /// `None` only within a method that consumes the request.
    body: Option<Box<Body<S, O>>>,
}

impl<S, O> fmt::Debug for Request<S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        f.debug_struct("Request")
            .field("queue", &body.queue)
            .field("entry", &body.entry)
            .finish_non_exhaustive()
    }
}

impl<S, O> Request<S, O> {
    pub(crate) fn new(body: Box<Body<S, O>>) -> Self {
        Self { body: Some(body) }
    }

    fn body(&self) -> &Body<S, O> {
        // PANIC: by the invariant.
        self.body.as_ref().expect("a request has a body")
    }

    pub(crate) fn body_mut(&mut self) -> &mut Body<S, O> {
        // PANIC: by the invariant.
        self.body.as_mut().expect("a request has a body")
    }

    /// Takes the request apart without completing it.
    pub(crate) fn into_body(mut self) -> Box<Body<S, O>> {
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

    pub(crate) fn taken(&self) -> Option<Instant> {
        self.body().taken
    }

    /// Whether the request yielded when it was last submitted, or was resumed since, and goes
    /// on. Otherwise what the device keeps with it is that of an earlier request.
    pub fn is_resumed(&self) -> bool {
        self.body().resumed
    }

    /// Records that the device begins something that must not be done twice, also not by another
    /// process after the end of this one. Returns whether no process had begun it; otherwise
    /// what was done of it is unknown, and the request can only fail.
    #[must_use = "the request may have been executed"]
    pub fn begin_once(&self) -> bool {
        let body = self.body();
        if let Some(record) = &body.record {
            record.begun(body.entry.head);
        }
        !body.entry.begun
    }

    /// The buffers of the chain, as the driver described them.
    pub fn buffers(&self) -> &[Buffer] {
        self.body().chain.buffers()
    }

    /// Whatever the device keeps with the request.
    pub fn scratch(&self) -> &S {
        &self.body().scratch
    }

    /// The buffers, and what the device keeps with the request.
    pub fn parts(&mut self) -> (&[Buffer], &mut S) {
        let body = self.body_mut();
        (body.chain.buffers(), &mut body.scratch)
    }

    /// Completes the request from any thread. The worker of its queue writes the answer.
    /// Never blocks.
    pub fn complete(self, outcome: O) {
        let body = self.into_body();
        let mailbox = Arc::clone(&body.mailbox);
        mailbox.give_back((body, Return::Completed(outcome)));
    }

    /// Has the worker of its queue submit the request again, from any thread. Never blocks.
    /// If the queue was stopped meanwhile, nothing happens: the request is submitted anew
    /// when the queue goes on.
    pub fn resume(self) {
        let body = self.into_body();
        let mailbox = Arc::clone(&body.mailbox);
        mailbox.give_back((body, Return::Resumed));
    }
}

impl<S, O> Drop for Request<S, O> {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            let mailbox = Arc::clone(&body.mailbox);
            mailbox.give_back((body, Return::Dropped));
        }
    }
}

/// What became of a request that was submitted.
#[derive(Debug)]
pub enum Submission<S, O> {
    /// It is done.
    Completed(Request<S, O>, O),
    /// The device has kept it, to complete or resume it later. A queue that is stopped
    /// meanwhile submits it anew when it goes on, so whatever was done of it must bear
    /// repetition.
    Deferred,
    /// One step of it is done; it is submitted again soon. A queue that is stopped meanwhile
    /// submits it anew when it goes on, so each of its steps must bear repetition.
    Yielded(Request<S, O>),
    /// It cannot be answered: the queue is broken.
    Fault(Request<S, O>, Fault),
}
