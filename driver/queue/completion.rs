// SPDX-License-Identifier: GPL-2.0

//! The completion of a request: the value that notifies its caller.
//!
//! A [`Caller`] submits a request. It becomes the request's [`Completion`] once the device has the
//! request. When the request has completed, the [`Completion`] becomes a [`CompletedRequest`],
//! which notifies the caller last: by then the slot and its pages were released.

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

/// The value that notifies the caller of a request.
pub(crate) enum Completion {
    /// Notifies no caller: the request was not submitted, or the thread that waited was killed.
    Nobody,
    /// The submitting thread, which busy-polls for the completion and takes the slot back.
    Submitter,
    /// A thread that sleeps until this request has completed, and takes the slot back.
    Waiting,
    /// An asynchronous call that consists of this request only.
    Kiocb(QueuedKiocb),
    /// A command of io_uring.
    Command(QueuedUringCommand),
    /// A call of several requests.
    Part(SplitPart),
}

impl Completion {
    /// Whether a thread of the driver takes the slot back; otherwise the thread that reaps frees
    /// it.
    pub(super) fn is_sync(&self) -> bool {
        matches!(self, Self::Submitter | Self::Waiting)
    }
}

/// A request that the device has completed and whose caller has not been notified yet.
pub(super) enum CompletedRequest {
    Nobody,
    Kiocb(QueuedKiocb, Outcome),
    Command(QueuedUringCommand, Result<u64>),
    Part(SplitPart, Outcome),
}

impl CompletedRequest {
    /// Reads the outcome of the request.
    #[inline(always)]
    pub(super) fn new(completion: Completion, request: &RequestBuffers) -> Self {
        match completion {
            Completion::Kiocb(kiocb) => Self::Kiocb(kiocb, request.transfer_outcome()),
            Completion::Command(command) => Self::Command(command, request.command_outcome()),
            Completion::Part(part) => Self::Part(part, request.transfer_outcome()),
            Completion::Nobody | Completion::Submitter | Completion::Waiting => Self::Nobody,
        }
    }

    /// Notifies the caller. Any context, no lock held: the caller may submit again.
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

/// The submitter of a request. It becomes the [`Completion`] of the request when submission can no
/// longer fail. Until then it stays a `Caller`, and an error returns it.
pub(crate) trait Caller {
    /// The value that the caller's call returns once the device has the request.
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

/// A thread that waits for the slot itself.
pub(super) struct Waiting;

impl Caller for Waiting {
    type Return = ();

    #[inline]
    fn queue(self) -> (Completion, ()) {
        (Completion::Waiting, ())
    }
}
