// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory at one moment.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult, Permissions,
    VolatileSlice,
};

use super::ranges::{Range, Ranges};

/// The memory of a [`super::DmaTable`] at one moment. Never changes, and keeps the memory mapped
/// that it refers to.
///
/// An access may span ranges that follow each other without a gap. All of them must allow it,
/// else it fails as a whole, before the first byte.
#[derive(Clone)]
pub struct DmaMemory {
    ranges: Arc<Ranges>,
}

impl fmt::Debug for DmaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaMemory")
            .field("ranges", &self.ranges.len())
            .finish_non_exhaustive()
    }
}

impl DmaMemory {
    pub(super) fn new(ranges: Arc<Ranges>) -> Self {
        Self { ranges }
    }

    /// The range of `address`, if it has memory and allows `access`.
    fn range(&self, address: u64, access: Permissions) -> GuestMemoryResult<&Range> {
        self.ranges
            .find(address)
            .filter(|range| range.memory.is_some() && range.access.allow(access))
            .ok_or(GuestMemoryError::InvalidGuestAddress(GuestAddress(address)))
    }

    /// Slices of the `count` bytes at `address`, if all of them allow `access`.
    fn slices(
        &self,
        address: u64,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<Slices<'_>> {
        let mut slices = Slices {
            memory: self,
            address,
            count,
            access,
            range: None,
        };
        let Some(more) = (count as u64).checked_sub(1) else {
            return Ok(slices);
        };
        let last = address
            .checked_add(more)
            .ok_or(GuestMemoryError::GuestAddressOverflow)?;
        let mut range = self.range(address, access)?;
        slices.range = Some(range);
        while range.last < last {
            range = self.range(range.last + 1, access)?;
        }
        Ok(slices)
    }
}

impl GuestMemory for DmaMemory {
    /// Never there, see [`GuestMemory::physical_memory`].
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.slices(addr.0, count, access).is_ok()
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        self.slices(addr.0, count, access)
    }
}

/// Slices of memory that follow each other.
#[derive(Debug)]
struct Slices<'a> {
    memory: &'a DmaMemory,
    /// Address of the next slice. Not valid if `count` is 0.
    address: u64,
    /// Number of bytes that are left.
    count: usize,
    access: Permissions,
    /// The range of `address`, if it is known already.
    range: Option<&'a Range>,
}

impl<'a> Slices<'a> {
    fn slice(&mut self) -> GuestMemoryResult<VolatileSlice<'a>> {
        let range = match self.range.take() {
            Some(range) => range,
            None => self.memory.range(self.address, self.access)?,
        };
        let skipped = self.address - range.first;
        let available = usize::try_from(range.size() - skipped).unwrap_or(usize::MAX);
        let count = self.count.min(available);
        let memory = range.memory.as_ref();
        let pointer = memory.and_then(|part| part.file.address(part.offset + skipped, count));
        let pointer = pointer.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        self.count -= count;
        // Wraps to 0 only behind the last address there is, with nothing left.
        self.address = self.address.wrapping_add(count as u64);
        // SAFETY: The `count` bytes are mapped, says `FileMapping::address`, and stay so for 'a:
        // `self.memory` refers to the mapping for 'a and never changes. Everybody in this process
        // reaches them by volatile slices only.
        Ok(unsafe { VolatileSlice::new(pointer, count) })
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let slice = self.slice();
        if slice.is_err() {
            self.count = 0;
        }
        Some(slice)
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}
