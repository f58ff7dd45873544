// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pieces of memory at multiples of a power of two, as direct I/O wants them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;

/// Smallest piece of memory that is allocated with room to align it, in bytes.
const LARGE_BYTES: usize = 64 << 10;

/// An aligned piece of memory, initialised.
///
/// # Invariants
///
/// `length` initialised bytes from `start` on lie within the allocation.
pub(crate) struct Memory {
    start: NonNull<u8>,
    length: usize,
    allocation: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    /// `bytes` of zeros, at least 1, at a multiple of `align`, a power of two.
    pub(crate) fn zeroed(bytes: usize, align: usize) -> Self {
        assert!(bytes > 0 && align.is_power_of_two());
        // An allocator that is asked for such an alignment writes the zeros itself, and one that
        // is not has the kernel's, page by page as they are needed.
        let (room, layout_align) = match bytes >= LARGE_BYTES {
            true => (align, 1),
            false => (0, align),
        };
        // PANIC: No caller asks for more than half of the address space.
        let layout =
            Layout::from_size_align(bytes + room, layout_align).expect("a possible layout");
        // SAFETY: The layout has a size.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else {
            handle_alloc_error(layout)
        };
        let skipped = allocation.addr().get().next_multiple_of(align) - allocation.addr().get();
        Self {
            // INVARIANT: less than `align` bytes are skipped, for which there is room, or none.
            // SAFETY: It is within the allocation for the same reason.
            start: unsafe { allocation.add(skipped) },
            length: bytes,
            allocation,
            layout,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    /// For the kernel. The memory stays there until this is dropped, also when it is moved.
    pub(crate) const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) const fn bytes(&self) -> &[u8] {
        // SAFETY: The memory is initialised and belongs to this, and whoever can call this
        // has not given it to the kernel.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub(crate) const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: As above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: It was allocated with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

// SAFETY: The memory belongs to this as to a box.
unsafe impl Send for Memory {}
// SAFETY: As above: a shared reference only reads.
unsafe impl Sync for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Memory").field(&self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_size_is_aligned_zeros() {
        let mut pieces = Vec::new();
        for align in [1, 512, 4096, 65536] {
            for bytes in [1, 512, 4096, LARGE_BYTES - 1, LARGE_BYTES, 1_000_000] {
                let mut memory = Memory::zeroed(bytes, align);
                assert_eq!(memory.len(), bytes);
                assert!(memory.as_ptr().addr().is_multiple_of(align));
                assert!(memory.bytes().iter().all(|byte| *byte == 0));
                memory.bytes_mut().fill(pieces.len() as u8 + 1);
                pieces.push(memory);
            }
        }
        for (index, memory) in pieces.iter().enumerate() {
            assert!(memory.bytes().iter().all(|byte| *byte == index as u8 + 1));
        }
    }
}
