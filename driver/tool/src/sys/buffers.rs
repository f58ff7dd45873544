// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Page-aligned buffers of equal size.

use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::param::page_size;

/// Buffers for the transfers of a queue, unmapped when dropped.
///
/// # Invariants
///
/// `start .. start + count * stride` is anonymous memory, readable and writable, and belongs to this
/// value alone. `size <= stride`.
#[derive(Debug)]
pub struct Buffers {
    start: NonNull<u8>,
    /// Distance of two buffers in bytes, a multiple of the page size.
    stride: usize,
    size: usize,
    count: usize,
}

impl Buffers {
    /// Buffers of `size` bytes each, filled with zeroes. `size` and `count` are not 0.
    pub fn new(count: usize, size: usize) -> Result<Self, Errno> {
        let stride = size
            .checked_next_multiple_of(page_size())
            .ok_or(Errno::NOMEM)?;
        let length = stride.checked_mul(count).ok_or(Errno::NOMEM)?;
        // The pages are there before the first transfer, so that it does not measure page faults.
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a map at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), length, protection, flags) }?;
        // INVARIANT: just mapped.
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?,
            stride,
            size,
            count,
        })
    }

    /// Number of buffers.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The address of `length` bytes at `at` in a buffer.
    ///
    /// # Panics
    ///
    /// If they are not within the buffer.
    pub fn address(&self, buffer: usize, at: usize, length: usize) -> NonNull<u8> {
        assert!(buffer < self.count, "buffer {buffer} of {}", self.count);
        assert!(
            at <= self.size && length <= self.size - at,
            "{length} bytes at {at} of {}",
            self.size
        );
        // SAFETY: within the map, by the invariant.
        unsafe { self.start.add(buffer * self.stride + at) }
    }

    /// The bytes of a buffer.
    ///
    /// # Safety
    ///
    /// The kernel does not access this buffer while the reference exists.
    pub unsafe fn bytes(&mut self, buffer: usize) -> &mut [u8] {
        let start = self.address(buffer, 0, self.size);
        // SAFETY: initialised memory of this value, and borrowed as it is; the kernel does not
        // access it, by the requirement of this function.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.size) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: by the invariant the memory belongs to this value, and no reference to it is left.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.stride * self.count) };
        debug_assert!(result.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_separate() {
        let mut buffers = Buffers::new(3, 5000).unwrap();
        for buffer in 0..3 {
            assert!(
                buffers
                    .address(buffer, 0, 5000)
                    .addr()
                    .get()
                    .is_multiple_of(page_size())
            );
            // SAFETY: no transfer is in flight.
            unsafe { buffers.bytes(buffer) }.fill(buffer as u8 + 1);
        }
        for buffer in 0..3 {
            // SAFETY: as above.
            let bytes = unsafe { buffers.bytes(buffer) };
            assert!(bytes.iter().all(|byte| *byte == buffer as u8 + 1));
        }
    }

    #[test]
    #[should_panic(expected = "2 bytes at 4999 of 5000")]
    fn bytes_beyond_a_buffer_have_no_address() {
        let buffers = Buffers::new(1, 5000).unwrap();
        buffers.address(0, 4999, 2);
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert_eq!(
            Buffers::new(usize::MAX / 4096, 4096 + 1).unwrap_err(),
            Errno::NOMEM
        );
    }
}
