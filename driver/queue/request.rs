// SPDX-License-Identifier: GPL-2.0

//! A slot while a submitter prepares it.
//!
//! ```text
//!               prepare_command --> Command ----------+
//! AcquiredSlot                                        |-- for_caller, for_owner --> Request
//!               prepare_transfer -> Transfer<Pages> --+
//! ```
//!
//! A [`Request`] is what a queue takes for somebody who is told later. Whoever waits for the
//! end hands over the [`Command`] or [`Transfer`] itself, because how to wait depends on what
//! it is: only a command may be left to itself after a time.

use super::{
    slot::{
        Completion,
        Slot, //
    },
    state::Queue, //
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
use core::marker::PhantomData;
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    types::ScopeGuard, //
};

struct Held<'a> {
    slot: KBox<Slot>,
    queue: &'a Queue,
    device: &'a pci::Device<Bound>,
}

impl Held<'_> {
    /// The device never had it.
    fn give_back(mut self) {
        self.slot.give_up(self.device);
        self.queue.free(self.slot);
    }
}

/// A slot in the hands of a submitter. Dropped without being submitted it lets
/// go of what was prepared, and is free again. No lock of the queue may be held then.
pub(crate) struct AcquiredSlot<'a>(ScopeGuard<Held<'a>, fn(Held<'a>)>);

impl<'a> AcquiredSlot<'a> {
    pub(super) fn new(queue: &'a Queue, device: &'a pci::Device<Bound>, slot: KBox<Slot>) -> Self {
        let held = Held {
            slot,
            queue,
            device,
        };
        Self(ScopeGuard::new_with_data(held, Held::give_back))
    }

    /// As [`Slot::prepare_command`].
    pub(crate) fn prepare_command(mut self, header: RequestHeader) -> Command<'a> {
        self.0.slot.prepare_command(header);
        Command(self)
    }

    /// As [`Slot::prepare_transfer`]. On an error the slot comes back as well.
    pub(crate) fn prepare_transfer<'s, O: Ownership>(
        mut self,
        opcode: Opcode,
        flags: u16,
        offset: u64,
        pages: Extracted<'s, O>,
    ) -> Result<Transfer<'a, O>, (Error, Extracted<'s, O>)> {
        let device = self.0.device;
        self.0
            .slot
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
    /// [`Caller`]: super::caller::Caller
    pub(crate) fn for_caller(self) -> Request<'a> {
        Request(self.0)
    }
}

/// A transfer that is ready to be submitted, of pages that `O` keeps.
pub(crate) struct Transfer<'a, O: Ownership> {
    slot: AcquiredSlot<'a>,
    _pages: PhantomData<O>,
}

impl<'a, O: Ownership> Transfer<'a, O> {
    /// The request, for a [`Caller`] to be submitted with; the same holds as for
    /// [`Self::for_owner`].
    ///
    /// [`Caller`]: super::caller::Caller
    pub(crate) fn for_caller(self) -> Request<'a> {
        Request(self.slot)
    }

    /// The request, for `owner`, whose completion comes after the end of the request: by
    /// then even pages that are only lent were given back.
    pub(crate) fn for_owner(self, owner: Completion) -> Request<'a> {
        let mut request = Request(self.slot);
        request.set_owner(owner);
        request
    }
}

/// A request that is ready to be submitted.
pub(crate) struct Request<'a>(AcquiredSlot<'a>);

impl Request<'_> {
    pub(super) fn into_inner(self) -> KBox<Slot> {
        self.0 .0.dismiss().slot
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.0 .0.slot
    }

    /// Sets who is told when the request has ended.
    pub(super) fn set_owner(&mut self, owner: Completion) {
        self.0 .0.slot.owner = owner;
    }
}
