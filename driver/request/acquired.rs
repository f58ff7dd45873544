// SPDX-License-Identifier: GPL-2.0

//! A slot while a submitter prepares it.

use super::{
    queue::Queue,
    slot::{
        Owner,
        Slot, //
    }, //
};
use crate::{
    abstractions::iov::IovIter,
    layout::{
        Opcode,
        RequestHeader, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*, //
};

/// A slot in the hands of a submitter. Dropped without being submitted it lets
/// go of what was prepared, and is free again; sleeps then.
pub(crate) struct AcquiredSlot<'a> {
    queue: &'a Queue,
    device: &'a pci::Device<Bound>,
    slot: Option<KBox<Slot>>,
}

impl<'a> AcquiredSlot<'a> {
    pub(super) fn new(queue: &'a Queue, device: &'a pci::Device<Bound>, slot: KBox<Slot>) -> Self {
        Self {
            queue,
            device,
            slot: Some(slot),
        }
    }

    pub(super) fn into_inner(mut self) -> Option<KBox<Slot>> {
        self.slot.take()
    }

    pub(super) fn slot_mut(&mut self) -> Result<&mut Slot> {
        // Empty only within `into_inner`, which uses `self` up.
        self.slot.as_deref_mut().ok_or(EIO)
    }

    /// As [`Slot::prepare_command`].
    pub(crate) fn prepare_command(&mut self, header: RequestHeader) -> Result {
        self.slot_mut()?.prepare_command(header)
    }

    /// As [`Slot::prepare_transfer`].
    pub(crate) fn prepare_transfer(
        &mut self,
        opcode: Opcode,
        flags: u16,
        offset: u64,
        iter: &mut IovIter<'_>,
        limit: usize,
    ) -> Result<usize> {
        let device = self.device;
        self.slot_mut()?
            .prepare_transfer(device, opcode, flags, offset, iter, limit)
    }

    /// Sets who is told when the request has ended, and returns who would have been.
    pub(crate) fn set_owner(&mut self, owner: Owner) -> Owner {
        match &mut self.slot {
            Some(slot) => core::mem::replace(&mut slot.owner, owner),
            None => Owner::Nobody,
        }
    }
}

impl Drop for AcquiredSlot<'_> {
    fn drop(&mut self) {
        if let Some(mut slot) = self.slot.take() {
            slot.release(self.device);
            self.queue.free(slot);
        }
    }
}
