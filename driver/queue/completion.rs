// SPDX-License-Identifier: GPL-2.0

//! Who is told when a request has ended, and how.
//!
//! A [`Caller`] submits a request. It becomes the request's [`Completion`] once the device has
//! the request. The end of the request makes that a [`CompletedRequest`], which is told last:
//! by then everything was given back.

use super::{
    buffers::{
        Outcome,
        RequestBuffers, //
    },
    split::SplitPart, //
};
use crate::abstractions::{
    fs::kiocb::{
        AsyncKiocb,
        IoReturn,
        QueuedKiocb, //
    },
    io_uring::command::{
        QueuedUringCommand,
        UringCommand,
        UringReturn, //
    }, //
};
use kernel::prelude::*;

/// Who is told when the request has ended.
pub(crate) enum Completion {
    /// Nobody: the request was not submitted, or the thread that waited for it was killed.
    Nobody,
    /// The thread that has submitted it, which busy-polls for its end and takes the slot back.
    Submitter,
    /// A thread that sleeps until this request has ended, and takes the slot back.
    Waiting,
    /// An asynchronous call that consists of this request only.
    Kiocb(QueuedKiocb),
    /// A command of io_uring.
    Command(QueuedUringCommand),
    /// A call of several requests.
    Part(SplitPart),
}

impl Completion {
    /// Whether a thread of the driver takes the slot back; otherwise whoever reaps frees it.
    pub(super) fn is_sync(&self) -> bool {
        matches!(self, Self::Submitter | Self::Waiting)
    }
}

/// A request that has ended, and the outcome that its caller is still to be told.
pub(super) enum CompletedRequest {
    Nobody,
    Kiocb(QueuedKiocb, Outcome),
    Command(QueuedUringCommand, Result<u64>),
    Part(SplitPart, Outcome),
}

impl CompletedRequest {
    /// Reads the outcome of the request.
    #[inline]
    pub(super) fn new(completion: Completion, request: &RequestBuffers) -> Self {
        match completion {
            Completion::Kiocb(kiocb) => Self::Kiocb(kiocb, request.transfer_outcome()),
            Completion::Command(command) => Self::Command(command, request.command_outcome()),
            Completion::Part(part) => Self::Part(part, request.transfer_outcome()),
            Completion::Nobody | Completion::Submitter | Completion::Waiting => Self::Nobody,
        }
    }

    /// Tells the caller. Any context, no lock held: the caller may submit again.
    #[inline]
    pub(super) fn complete(self) {
        match self {
            Self::Kiocb(kiocb, outcome) => kiocb.complete(outcome.into_result()),
            Self::Command(command, result) => command.complete(result),
            Self::Part(part, outcome) => part.done(outcome),
            Self::Nobody => {}
        }
    }
}

/// Who submits a request. Becomes its [`Completion`] when the request can no longer
/// fail to get to the device. Until then it stays what it is, and comes back with the
/// error.
pub(crate) trait Caller {
    /// What the caller gets to return once the request is with the device.
    type Return;

    /// Becomes the completion. Any context.
    fn queue(self) -> (Completion, Self::Return);
}

impl<'call> Caller for AsyncKiocb<'call> {
    type Return = IoReturn<'call>;

    #[inline]
    fn queue(self) -> (Completion, Self::Return) {
        let (queued, answer) = AsyncKiocb::queue(self);
        (Completion::Kiocb(queued), answer)
    }
}

impl<'call> Caller for UringCommand<'call> {
    type Return = UringReturn<'call>;

    #[inline]
    fn queue(self) -> (Completion, Self::Return) {
        let (queued, answer) = UringCommand::queue(self);
        (Completion::Command(queued), answer)
    }
}

/// The thread waits for the slot itself.
pub(super) struct Waiting;

impl Caller for Waiting {
    type Return = ();

    #[inline]
    fn queue(self) -> (Completion, ()) {
        (Completion::Waiting, ())
    }
}
