// SPDX-License-Identifier: GPL-2.0

//! A virtqueue that owns what the device may access.
//!
//! ```text
//!               add                      get_buf: the device used it
//!  the driver ------> owned by the queue --------------------------> the driver
//!                             |
//!                             +-- detach_unused_buf: the device is reset --> the driver
//! ```
//!
//! A value owns the memory of a request: pages, descriptor table, header. From [`Virtqueue::add`] on
//! the driver has it back only when the device has used its entry, or with the proof that the device
//! was stopped. So no code of the driver can free the memory of a request in flight. That the proof is
//! one of the same device, and that the device is stopped before the queue is dropped, is the owner's
//! duty.

use super::{
    reset::Quiesced,
    ring::{
        Areas,
        EntryId,
        PerEntry,
        Ring, //
    }, //
};
use crate::abstractions::dma::range::DmaRange;
use kernel::{
    device::Bound,
    pci,
    prelude::*, //
};

/// The queue. Its owner serialises the calls.
///
/// # Invariants
///
/// Each entry is in `free`, or has a value in `owned`, which the device may access. Values own what the
/// device accesses: a borrow would end although the value is forgotten.
pub(crate) struct Virtqueue<T: 'static> {
    ring: Ring,
    owned: PerEntry<Option<T>>,
    free: KVec<EntryId>,
}

impl<T: 'static> Virtqueue<T> {
    /// Allocates a queue of `size` entries, a power of two. May sleep.
    pub(crate) fn new(device: &pci::Device<Bound>, size: u16, event_idx: bool) -> Result<Self> {
        let ring = Ring::new(device, size, event_idx)?;
        let mut free = KVec::with_capacity(size.into(), GFP_KERNEL)?;
        for entry in ring.entries() {
            free.push(entry, GFP_KERNEL)?;
        }
        // INVARIANT: All entries are free.
        Ok(Self {
            owned: PerEntry::new(&ring, |_| Ok(None))?,
            ring,
            free,
        })
    }

    /// The addresses that the device gets.
    pub(crate) fn areas(&self) -> Areas {
        self.ring.areas()
    }

    /// Makes `value` available to the device after the next [`Self::publish`]: `describe` says which
    /// memory of the value, and of which kind, as of [`Ring::push`]. Any context. Returns the value
    /// if all entries are in use.
    pub(crate) fn add(
        &mut self,
        value: T,
        describe: impl FnOnce(&T) -> (DmaRange<'_>, u16),
    ) -> Result<(), T> {
        let Some(entry) = self.free.pop() else {
            return Err(value);
        };
        let value = self.owned[entry].insert(value);
        let (range, flags) = describe(value);
        self.ring.push(entry, range, flags);
        Ok(())
    }

    /// Takes the next value that the device has used, and the number of bytes that the device says it
    /// has written. Any context. `EPROTO` if the device broke the ring, or used an entry that it did
    /// not have: then it has to be reset.
    pub(crate) fn get_buf(&mut self) -> Result<Option<(T, u32)>> {
        let Some(used) = self.ring.pop().map_err(|_| EPROTO)? else {
            return Ok(None);
        };
        let value = self.owned[used.entry].take().ok_or(EPROTO)?;
        // It has capacity for all entries.
        let _ = self.free.push_within_capacity(used.entry);
        Ok(Some((value, used.len)))
    }

    /// Takes a value that the device has not used, after the device was stopped. `None` if there is
    /// none left; then [`Self::restart`] may follow.
    pub(crate) fn detach_unused_buf(&mut self, _quiesced: &Quiesced) -> Option<T> {
        let entry = self
            .ring
            .entries()
            .find(|&entry| self.owned[entry].is_some())?;
        // It has capacity for all entries.
        let _ = self.free.push_within_capacity(entry);
        self.owned[entry].take()
    }

    /// Returns to the initial state, like the device after a reset. `EBUSY` if not all values were
    /// taken.
    pub(crate) fn restart(&mut self, quiesced: &Quiesced) -> Result {
        if self.free.len() != self.owned.len() {
            return Err(EBUSY);
        }
        self.ring.restart(quiesced);
        Ok(())
    }

    /// The values that the device has.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &T> {
        self.ring
            .entries()
            .filter_map(|entry| self.owned[entry].as_ref())
    }

    /// As [`Ring::publish`].
    pub(crate) fn publish(&mut self) {
        self.ring.publish();
    }

    /// As [`Ring::wants_notification`].
    pub(crate) fn wants_notification(&mut self) -> bool {
        self.ring.wants_notification()
    }

    /// As [`Ring::enable_interrupts`].
    pub(crate) fn enable_interrupts(&mut self) -> bool {
        self.ring.enable_interrupts()
    }
}

impl<T: 'static> Drop for Virtqueue<T> {
    /// Values that nobody has taken back are lost, because the device may access them. The ring is
    /// freed.
    fn drop(&mut self) {
        for entry in self.ring.entries() {
            core::mem::forget(self.owned[entry].take());
        }
    }
}
