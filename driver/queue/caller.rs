// SPDX-License-Identifier: GPL-2.0

//! Whose request it is, until a queue has taken it.

use super::slot::Completion;
use crate::abstractions::{
    fs::kiocb::{
        AsyncKiocb, //
        IoReturn,
    },
    io_uring::command::{
        UringCommand, //
        UringReturn,
    }, //
};

/// Who submits a request. Becomes its [`Completion`] at the moment in which the request
/// can no longer fail to get to the device; until then it stays what it is, and
/// comes back with the error.
pub(crate) trait Caller {
    /// What the caller gets to return once the request is with the device.
    type IoReturn;

    /// Becomes the owner. Any context.
    fn queue(self) -> (Completion, Self::IoReturn);
}

impl<'call> Caller for AsyncKiocb<'call> {
    type IoReturn = IoReturn<'call>;

    #[inline]
    fn queue(self) -> (Completion, Self::IoReturn) {
        let (queued, answer) = AsyncKiocb::queue(self);
        (Completion::Kiocb(queued), answer)
    }
}

impl<'call> Caller for UringCommand<'call> {
    type IoReturn = UringReturn<'call>;

    #[inline]
    fn queue(self) -> (Completion, Self::IoReturn) {
        let (queued, answer) = UringCommand::queue(self);
        (Completion::Command(queued), answer)
    }
}

/// The thread waits for the slot itself.
pub(super) struct Waiting;

impl Caller for Waiting {
    type IoReturn = ();

    #[inline]
    fn queue(self) -> (Completion, ()) {
        (Completion::Waiting, ())
    }
}
