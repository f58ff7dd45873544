// SPDX-License-Identifier: GPL-2.0

//! Whose request it is, until a queue has taken it.

use super::slot::Owner;
use crate::abstractions::{
    fs::kiocb::{
        Answer,
        AsyncKiocb, //
    },
    io_uring::command::{
        UringAnswer,
        UringCommand, //
    }, //
};

/// Who submits a request. Becomes its [`Owner`] at the moment in which the request
/// can no longer fail to get to the device; until then it stays what it is, and
/// comes back with the error.
pub(crate) trait Caller {
    /// What the caller gets to return once the request is with the device.
    type Answer;

    /// Becomes the owner. Any context.
    fn queue(self) -> (Owner, Self::Answer);
}

impl<'call> Caller for AsyncKiocb<'call> {
    type Answer = Answer<'call>;

    #[inline]
    fn queue(self) -> (Owner, Self::Answer) {
        let (queued, answer) = AsyncKiocb::queue(self);
        (Owner::Kiocb(queued), answer)
    }
}

impl<'call> Caller for UringCommand<'call> {
    type Answer = UringAnswer<'call>;

    #[inline]
    fn queue(self) -> (Owner, Self::Answer) {
        let (queued, answer) = UringCommand::queue(self);
        (Owner::Command(queued), answer)
    }
}

/// The thread waits for the slot itself.
pub(super) struct Waiting;

impl Caller for Waiting {
    type Answer = ();

    #[inline]
    fn queue(self) -> (Owner, ()) {
        (Owner::Waiting, ())
    }
}
