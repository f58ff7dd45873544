// SPDX-License-Identifier: GPL-2.0

//! A slot while a submitter prepares it.
//!
//! ```text
//!               prepare_command --> Command ----------+
//! AcquiredSlot                                        |-- for_caller, for_completion --> Request
//!               prepare_transfer -> Transfer<Pages> --+
//! ```
//!
//! A queue takes a [`Request`] for a caller that is notified later. A thread that waits for the
//! completion passes the [`Command`] or [`Transfer`] itself, because the way to wait depends on the
//! kind: the thread may stop waiting after a time for a command only.

use super::{
    completion::Completion,
    slot::Slot,
    state::QueueRef, //
};
use crate::{
    abstractions::dma::segments::{
        Extracted,
        Ownership, //
    },
    layout::{
        Opcode,
        RequestHeader, //
    }, //
};
use core::{
    iter::once,
    marker::PhantomData, //
};
use kernel::{
    prelude::*,
    types::ScopeGuard, //
};

struct Inner<'a> {
    slot: KBox<Slot>,
    queue: QueueRef<'a>,
}

impl Inner<'_> {
    /// The device never had the request.
    fn release(mut self) {
        self.slot.release_clean(self.queue.device());
        self.queue.free(once(self.slot));
    }
}

/// A slot while a submitter prepares it. Dropping it without a submission releases the prepared
/// pages and frees the slot. No lock of the queue may be held then.
pub(crate) struct AcquiredSlot<'a>(ScopeGuard<Inner<'a>, fn(Inner<'a>)>);

impl<'a> AcquiredSlot<'a> {
    pub(super) fn new(queue: QueueRef<'a>, slot: KBox<Slot>) -> Self {
        Self(ScopeGuard::new_with_data(
            Inner { slot, queue },
            Inner::release,
        ))
    }

    /// Prepares a request without data.
    pub(crate) fn prepare_command(mut self, header: RequestHeader) -> Command<'a> {
        self.0.slot.buffers.prepare_command(header);
        Command(self)
    }

    /// Prepares a transfer of the pages, and maps them for the device. Any context.
    ///
    /// Errors as of [`Extracted::map`], which returns the pages with the error; then the slot is
    /// free again.
    #[inline(always)]
    pub(crate) fn prepare_transfer<'s, O: Ownership>(
        mut self,
        opcode: Opcode,
        flags: u16,
        offset: u64,
        pages: Extracted<'s, O>,
    ) -> Result<Transfer<'a, O>, (Error, Extracted<'s, O>)> {
        let device = self.0.queue.device();
        self.0
            .slot
            .buffers
            .prepare_transfer(device, opcode, flags, offset, pages)?;
        Ok(Transfer {
            slot: self,
            _pages: PhantomData,
        })
    }
}

/// A request without data that is ready to be submitted.
pub(crate) struct Command<'a>(AcquiredSlot<'a>);

impl<'a> Command<'a> {
    /// The request, for a [`Caller`] to be submitted with.
    ///
    /// [`Caller`]: super::completion::Caller
    pub(crate) fn for_caller(self) -> Request<'a> {
        Request(self.0)
    }
}

/// A transfer that is ready to be submitted, of pages with the ownership `O`.
pub(crate) struct Transfer<'a, O: Ownership> {
    slot: AcquiredSlot<'a>,
    _pages: PhantomData<O>,
}

impl<'a, O: Ownership> Transfer<'a, O> {
    /// The request, for a [`Caller`] to be submitted with; the same holds as for
    /// [`Self::for_completion`].
    ///
    /// [`Caller`]: super::completion::Caller
    pub(crate) fn for_caller(self) -> Request<'a> {
        Request(self.slot)
    }

    /// The request, for `completion`, which follows the end of the request: by then even borrowed
    /// pages were released.
    pub(crate) fn for_completion(self, completion: Completion) -> Request<'a> {
        let mut request = Request(self.slot);
        request.set_completion(completion);
        request
    }
}

/// A request that is ready to be submitted.
pub(crate) struct Request<'a>(AcquiredSlot<'a>);

impl<'a> Request<'a> {
    /// The queue that its slot belongs to.
    #[inline]
    pub(super) fn queue(&self) -> QueueRef<'a> {
        self.0 .0.queue
    }

    pub(super) fn into_inner(self) -> KBox<Slot> {
        self.0 .0.dismiss().slot
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.0 .0.slot
    }

    /// Sets the completion of the request.
    pub(super) fn set_completion(&mut self, completion: Completion) {
        self.0 .0.slot.completion = completion;
    }
}
