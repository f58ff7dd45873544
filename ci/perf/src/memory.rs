// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Mapped memory. The only unsafe code of the crate beside the system calls of the engines.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A mapping of this process, readable and writable, unmapped when dropped.
///
/// The kernel, a device or another process may change it at any time, so there is never a
/// reference to its bytes: they are copied, or accessed by atomic operations.
///
/// # Invariants
///
/// `base .. base + length` is a mapping that belongs to this value alone, aligned to a page.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Mapping {
    /// Memory of this process, with all pages present.
    pub fn private(length: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: A new mapping at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), length, PROTECTION, flags) }?;
        Self::new(base.cast(), length)
    }

    /// The first bytes of a file, shared with all who map it.
    pub fn shared(file: &File, length: usize) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: A new mapping at an address that the kernel chooses.
        let base = unsafe { mmap(std::ptr::null_mut(), length, PROTECTION, flags, file, 0) }?;
        Self::new(base.cast(), length)
    }

    fn new(base: *mut u8, length: usize) -> io::Result<Self> {
        // INVARIANT: The kernel has just made the mapping.
        NonNull::new(base)
            .map(|base| Self { base, length })
            .ok_or_else(|| io::Error::other("a mapping at address 0"))
    }

    /// Address of `length` bytes at `offset`, for the kernel.
    ///
    /// # Panics
    ///
    /// The range is not in the mapping.
    pub fn address(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset <= self.length && length <= self.length - offset);
        self.base.as_ptr().wrapping_add(offset)
    }

    /// The words at `offset`, which is a multiple of 8.
    ///
    /// # Panics
    ///
    /// The range is not in the mapping, or not aligned.
    pub fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let length = count.checked_mul(size_of::<AtomicU64>());
        let address = self.address(offset, length.expect("the words are not in the mapping"));
        assert!(address.cast::<AtomicU64>().is_aligned());
        // SAFETY: The words are in the mapping, which lives as long as `self`, and aligned. They
        // may change at any time, which atomics allow.
        unsafe { slice::from_raw_parts(address.cast(), count) }
    }

    /// Copies `length` bytes from `from_offset` of another mapping to `offset`.
    ///
    /// # Panics
    ///
    /// A range is not in its mapping.
    #[inline]
    pub fn copy_from(&self, offset: usize, from: &Self, from_offset: usize, length: usize) {
        let (to, from) = (
            self.address(offset, length),
            from.address(from_offset, length),
        );
        // SAFETY: Both ranges are mapped and writable. There is no reference to their bytes; what
        // another process writes meanwhile makes the copy's bytes any bytes.
        unsafe { std::ptr::copy(from, to, length) };
    }

    /// Fills `length` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// The range is not in the mapping.
    pub fn fill(&self, offset: usize, length: usize, byte: u8) {
        let address = self.address(offset, length);
        // SAFETY: The range is mapped and writable, and there is no reference to its bytes.
        unsafe { std::ptr::write_bytes(address, byte, length) };
    }

    /// The byte at `offset`.
    pub fn byte(&self, offset: usize) -> u8 {
        let address = self.address(offset, 1);
        // SAFETY: In the mapping.
        unsafe { address.read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping belongs to this value, and all borrows of it have ended.
        let result = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(result.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "the words are not in the mapping")]
    fn a_number_of_words_does_not_wrap() {
        let mapping = Mapping::private(PAGE).unwrap();
        mapping.words(0, usize::MAX / size_of::<AtomicU64>() + 2);
    }
}
