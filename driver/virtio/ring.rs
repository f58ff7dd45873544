// SPDX-License-Identifier: GPL-2.0

//! A split virtqueue (2.7) in coherent memory.
//!
//! The driver uses the ring in one way only: an entry is either one indirect descriptor or one
//! device-writable buffer, so descriptor `n` is entry `n` and there is no free list of descriptors.
//! The ring issues the numbers ([`EntryId`]), the caller owns them.

use super::reset::Quiesced;
use crate::abstractions::{
    dma::range::DmaRange,
    mm::shared_memory::SharedCoherent, //
};
use core::ops::{
    Index,
    IndexMut, //
};
use kernel::{
    device::Bound,
    dma::Coherent,
    io::{
        io_read,
        io_write, //
        IoBase,
        SysMem,
    },
    pci,
    prelude::*,
    sync::{
        barrier::{
            dma_mb, //
            Full,
            Read,
            Write,
        }, //
        Arc,
    }, //
};

/// Descriptor flags (2.7.5).
pub(crate) mod descriptor_flag {
    /// The chain continues with the next descriptor.
    pub(crate) const NEXT: u16 = 1;
    /// The device writes to the buffer.
    pub(crate) const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub(crate) const INDIRECT: u16 = 4;
}

/// Size of a descriptor in 64-bit words.
pub(crate) const DESCRIPTOR_WORDS: usize = 2;

/// A descriptor (2.7.5) of `range`; `flags` has its kind, and `range` says whether the device may
/// write.
#[inline]
pub(crate) fn descriptor(range: DmaRange<'_>, flags: u16, next: u16) -> [u64; DESCRIPTOR_WORDS] {
    let flags = if range.is_writable() {
        flags | descriptor_flag::WRITE
    } else {
        flags
    };
    descriptor_words(range.address(), range.len(), flags, next)
}

/// A descriptor as two little-endian words: the address; and length, flags and next index.
#[inline]
fn descriptor_words(address: u64, len: u32, flags: u16, next: u16) -> [u64; DESCRIPTOR_WORDS] {
    [
        address.to_le(),
        (u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48).to_le(),
    ]
}

/// Whether moving an index from `old` to `new` passed `event`, so that the other side requested a
/// notification (2.7.10, `vring_need_event`).
#[inline]
pub(crate) fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Number of an entry. Only a ring issues it, for its own entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryId(u16);

impl EntryId {
    /// The number.
    #[inline]
    pub(crate) fn number(self) -> u16 {
        self.0
    }
}

/// A value for each entry of a ring.
///
/// # Invariants
///
/// There are as many values as the ring has entries, which is a power of two.
pub(crate) struct PerEntry<T>(KVec<T>);

impl<T> PerEntry<T> {
    /// One value for each entry of `ring`. May sleep.
    pub(crate) fn new(ring: &Ring, mut make: impl FnMut(EntryId) -> Result<T>) -> Result<Self> {
        let mut all = KVec::with_capacity(usize::from(ring.size()), GFP_KERNEL)?;
        for entry in ring.entries() {
            all.push(make(entry)?, GFP_KERNEL)?;
        }
        // INVARIANT: The size of a ring is a power of two.
        Ok(Self(all))
    }

    /// The number of values.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<T> Index<EntryId> for PerEntry<T> {
    type Output = T;

    #[inline]
    fn index(&self, entry: EntryId) -> &T {
        // A number of this ring is below its size; the number of another ring finds some entry.
        &self.0[usize::from(entry.0) & (self.0.len() - 1)]
    }
}

impl<T> IndexMut<EntryId> for PerEntry<T> {
    #[inline]
    fn index_mut(&mut self, entry: EntryId) -> &mut T {
        let mask = self.0.len() - 1;
        &mut self.0[usize::from(entry.0) & mask]
    }
}

/// An entry that the device has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// Number of the entry.
    pub(crate) entry: EntryId,
    /// Number of bytes that the device reports as written.
    pub(crate) len: u32,
}

/// The way in which a device broke the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingFault {
    /// The used index is further ahead than the number of entries.
    UsedIndex(u16),
    /// A used element names an entry beyond the ring.
    UsedEntry(u32),
}

/// Offsets in 16-bit words within the driver area (2.7.6).
const AVAIL_FLAGS: usize = 0;
const AVAIL_INDEX: usize = 1;
const AVAIL_RING: usize = 2;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Offsets in 32-bit words within the device area (2.7.8): flags and index share the first.
const USED_HEAD: usize = 0;
const USED_RING: usize = 1;

/// The memory and indices of one queue. Its owner serialises the calls.
///
/// # Invariants
///
/// `size` is a power of two from 1 to 32768, and the three areas have room for that many entries.
pub(crate) struct Ring {
    size: u16,
    event_idx: bool,
    descriptors: Coherent<[u64]>,
    avail: Coherent<[u16]>,
    used: Arc<SharedCoherent<u32>>,
    /// Index of the next entry to be made available.
    next_avail: u16,
    /// Index up to which the driver has decided whether to notify the device.
    announced: u16,
    /// Index of the next used element to be read.
    last_used: u16,
}

/// Size and bus addresses of a ring (2.7): descriptor table, available ring and used ring.
#[derive(Clone, Copy)]
pub(crate) struct Areas {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// A part of a ring as the CPU sees it. Computing the bus address of each element would take time.
#[inline]
fn memory<T>(part: &Coherent<[T]>) -> SysMem<'_, [T]> {
    part.as_view().as_sys_mem()
}

/// Index up to which the device has used entries, read from a used ring without its [`Ring`]. It is
/// only a hint that taking the lock is worthwhile: the entries may not be visible yet.
#[inline]
pub(crate) fn used_index(used: &Coherent<[u32]>) -> u16 {
    // CAST: The index is the second half.
    (u32::from_le(io_read!(memory(used), [panic: USED_HEAD])) >> 16) as u16
}

impl Ring {
    /// Allocates a ring of `size` entries. `EINVAL` if that is no power of two. May sleep.
    pub(crate) fn new(device: &pci::Device<Bound>, size: u16, event_idx: bool) -> Result<Self> {
        if !size.is_power_of_two() {
            return Err(EINVAL);
        }
        let device = device.as_ref();
        let n = usize::from(size);
        // INVARIANT: The sizes are those of 2.7: 16 n, 6 + 2 n and 6 + 8 n bytes (the last rounded
        // up to a word).
        Ok(Self {
            size,
            event_idx,
            descriptors: Coherent::zeroed_slice(device, DESCRIPTOR_WORDS * n, GFP_KERNEL)?,
            avail: Coherent::zeroed_slice(device, AVAIL_RING + n + 1, GFP_KERNEL)?,
            used: Arc::new(
                SharedCoherent::zeroed_slice(device, USED_RING + 2 * n + 1)?,
                GFP_KERNEL,
            )?,
            next_avail: 0,
            announced: 0,
            last_used: 0,
        })
    }

    /// Returns to the initial state, like the device after a reset: nothing was pushed or used, and
    /// interrupts are enabled. Entries that the device had before are forgotten.
    pub(crate) fn restart(&mut self, _quiesced: &Quiesced) {
        (self.next_avail, self.announced, self.last_used) = (0, 0, 0);
        let n = usize::from(self.size);
        for word in [AVAIL_FLAGS, AVAIL_INDEX, AVAIL_RING + n] {
            io_write!(memory(&self.avail), [panic: word], 0);
        }
        for word in [USED_HEAD, USED_RING + 2 * n] {
            io_write!(memory(&self.used), [panic: word], 0);
        }
    }

    /// Number of entries.
    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// The numbers of all entries.
    pub(crate) fn entries(&self) -> impl Iterator<Item = EntryId> {
        (0..self.size).map(EntryId)
    }

    /// The used ring, which only the device writes to.
    pub(crate) fn used_ring(&self) -> &Arc<SharedCoherent<u32>> {
        &self.used
    }

    /// The addresses that the device gets.
    pub(crate) fn areas(&self) -> Areas {
        Areas {
            size: self.size,
            descriptors: self.descriptors.dma_address(),
            driver: self.avail.dma_address(),
            device: self.used.dma_address(),
        }
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Makes `entry` available: the memory in `range`; `flags` has its kind, and `range` says
    /// whether the device may write. The device sees the entry after [`Self::publish`], and may
    /// access the memory until the entry is used.
    #[inline]
    pub(crate) fn push(&mut self, entry: EntryId, range: DmaRange<'_>, flags: u16) {
        let at = DESCRIPTOR_WORDS * self.slot(entry.0);
        let [first, second] = descriptor(range, flags, 0);
        let next = AVAIL_RING + self.slot(self.next_avail);
        io_write!(memory(&self.descriptors), [panic: at], first);
        io_write!(memory(&self.descriptors), [panic: at + 1], second);
        io_write!(memory(&self.avail), [panic: next], entry.0.to_le());
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes the pushed entries. The device may see them at once, but certainly does so only
    /// after a notification.
    #[inline]
    pub(crate) fn publish(&mut self) {
        // The entries before the index (2.7.13).
        dma_mb(Write);
        io_write!(memory(&self.avail), [panic: AVAIL_INDEX], self.next_avail.to_le());
    }

    /// Index up to which entries were pushed.
    #[inline]
    pub(crate) fn pushed(&self) -> u16 {
        self.next_avail
    }

    /// Index up to which used entries were taken. It follows [`Self::pushed`].
    #[inline]
    pub(crate) fn taken(&self) -> u16 {
        self.last_used
    }

    /// Whether all entries were taken that had been pushed when [`Self::pushed`] was `target`.
    #[inline]
    pub(crate) fn has_taken(&self, target: u16) -> bool {
        // The indices differ by at most the size of the ring. The driver's rings have at most 256
        // entries, which is less than half of the range of an index.
        target.wrapping_sub(self.last_used) as i16 <= 0
    }

    /// Number of entries that were pushed and not taken yet.
    #[inline]
    pub(crate) fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.last_used)
    }

    /// Whether the device requested a notification of the entries that were published since the
    /// last call.
    #[inline]
    pub(crate) fn wants_notification(&mut self) -> bool {
        let old = self.announced;
        if old == self.next_avail {
            return false;
        }
        self.announced = self.next_avail;
        // The index before the read of the device's request for notifications (2.7.13.4.1).
        dma_mb(Full);
        if self.event_idx {
            let at = USED_RING + 2 * usize::from(self.size);
            // CAST: The event is the first half of the word, whose rest is padding.
            let event = u32::from_le(io_read!(memory(&self.used), [panic: at])) as u16;
            passed(event, self.announced, old)
        } else {
            // CAST: The flags are the first half.
            let flags = u32::from_le(io_read!(memory(&self.used), [panic: USED_HEAD])) as u16;
            flags == 0
        }
    }

    /// Index up to which the device has used entries.
    #[inline]
    fn used_index(&self) -> u16 {
        used_index(&self.used)
    }

    /// Whether entries are still to be taken for which the driver has decided about a notification.
    pub(crate) fn is_awaited(&self) -> bool {
        self.announced != self.last_used
    }

    /// Whether there are used entries to be taken.
    #[inline]
    pub(crate) fn has_used(&self) -> bool {
        self.used_index() != self.last_used
    }

    /// Takes the next used entry, if there is one. The owner has to check whether the entry was
    /// available at all.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Result<Option<Used>, RingFault> {
        let index = self.used_index();
        if index == self.last_used {
            return Ok(None);
        }
        self.pop_up_to(index).map(Some)
    }

    /// As [`Self::pop`], if the device has used entries up to `index`.
    #[inline(always)]
    fn pop_up_to(&mut self, index: u16) -> Result<Used, RingFault> {
        if index.wrapping_sub(self.last_used) > self.size {
            return Err(RingFault::UsedIndex(index));
        }
        // The index before the elements (2.7.14).
        dma_mb(Read);
        let at = USED_RING + 2 * self.slot(self.last_used);
        let id = u32::from_le(io_read!(memory(&self.used), [panic: at]));
        let len = u32::from_le(io_read!(memory(&self.used), [panic: at + 1]));
        if id >= u32::from(self.size) {
            return Err(RingFault::UsedEntry(id));
        }
        self.last_used = self.last_used.wrapping_add(1);
        Ok(Used {
            // CAST: Below the size, which is 16 bits.
            entry: EntryId(id as u16),
            len,
        })
    }

    /// Enables the interrupt for the next used entry. Returns whether there is one already: then
    /// the device may send no interrupt for it, and the caller has to take entries again.
    #[inline]
    pub(crate) fn enable_interrupts(&mut self) -> bool {
        if self.event_idx {
            let at = AVAIL_RING + usize::from(self.size);
            io_write!(memory(&self.avail), [panic: at], self.last_used.to_le());
        } else {
            io_write!(memory(&self.avail), [panic: AVAIL_FLAGS], 0);
        }
        // The request before the read of the used index (2.7.7.2).
        dma_mb(Full);
        self.has_used()
    }

    /// Disables interrupts. Without `EVENT_IDX` the device may send one nevertheless; with it, the
    /// device sends one after 32768 entries unless this is repeated before.
    #[inline]
    pub(crate) fn disable_interrupts(&mut self) {
        if self.event_idx {
            // At the greatest distance. An index just behind `last_used` would not do: the device
            // may be in the middle of a batch that has passed it.
            let at = AVAIL_RING + usize::from(self.size);
            let event = self.last_used.wrapping_add(1 << 15);
            io_write!(memory(&self.avail), [panic: at], event.to_le());
        } else {
            io_write!(memory(&self.avail), [panic: AVAIL_FLAGS], NO_INTERRUPT.to_le());
        }
    }
}

#[kernel::macros::kunit_tests(ringbar_ring)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_has_the_layout_of_the_standard() {
        let words = descriptor_words(
            0x1122_3344_5566_7788,
            0x99aa_bbcc,
            descriptor_flag::NEXT,
            0xddee,
        );
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
        assert_eq!(bytes[..8], 0x1122_3344_5566_7788u64.to_le_bytes());
        assert_eq!(bytes[8..12], 0x99aa_bbccu32.to_le_bytes());
        assert_eq!(bytes[12..14], 1u16.to_le_bytes());
        assert_eq!(bytes[14..16], 0xddeeu16.to_le_bytes());
    }

    #[test]
    fn event_is_passed_by_the_step_over_it() {
        // An event of 5 requests a notification of the step that makes entry 5 available.
        assert!(!passed(5, 5, 3));
        assert!(passed(5, 6, 5));
        assert!(passed(5, 9, 2));
        assert!(!passed(5, 9, 6));
        assert!(!passed(5, 7, 7));
    }

    #[test]
    fn event_is_passed_where_the_index_wraps() {
        assert!(passed(0xffff, 0, 0xffff));
        assert!(passed(0xfffe, 3, 0xfff0));
        assert!(passed(1, 2, 0xffff));
        assert!(!passed(3, 2, 0xffff));
        assert!(!passed(0xfff0, 2, 0xfff1));
    }

    #[test]
    fn event_half_the_numbers_ahead_is_not_passed_by_a_batch() {
        // The property on which `disable_interrupts` relies.
        let last_used = 0x1234u16;
        let event = last_used.wrapping_add(0x8000);
        for batch in [1, 2, 255, 256, 0x7fff] {
            assert!(!passed(event, last_used.wrapping_add(batch), last_used));
        }
    }
}
