// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A shared map of a range, and access to it.
//!
//! A map is not ordinary memory. Others change it at any time, so no reference to it ever
//! exists, and all accesses copy. If it is a device's memory, each load and store is a
//! transaction on a bus. A copy by the C library uses accesses of any width, accesses some bytes
//! twice, and uses vector instructions, which a hypervisor that emulates the access may not
//! support. Here each byte is accessed once and in order, by aligned accesses of 8 bytes, and by
//! accesses of 1 byte before and behind them.

use std::fs::File;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

use crate::range::{Range, Span};

/// Width in bytes of an aligned access.
const WORD: usize = size_of::<u64>();

/// Access that a map allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// A mapped range, unmapped when dropped.
///
/// # Invariants
///
/// `start .. start + length` is mapped shared and belongs to this value alone, or `length` is 0
/// and nothing is mapped. Loads are allowed, and stores if `writable`.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    /// Number of mapped bytes before the range.
    skip: usize,
    writable: bool,
}

impl Mapping {
    /// Maps `range` of a file, counted from the offset `base`, which is page aligned.
    ///
    /// Fails with `EOVERFLOW` for a range beyond the address space, and with the errors of
    /// `mmap`.
    pub fn new(file: &File, base: u64, range: Range, access: Access) -> Result<Self, Errno> {
        let writable = access == Access::ReadWrite;
        if range.length == 0 {
            // INVARIANT: nothing is mapped; the kernel has no maps of length 0.
            return Ok(Self {
                start: NonNull::dangling(),
                length: 0,
                skip: 0,
                writable,
            });
        }
        let span = Span::new(range, page_size()).ok_or(Errno::OVERFLOW)?;
        let offset = base.checked_add(span.start).ok_or(Errno::OVERFLOW)?;
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED;
        // SAFETY: a map at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                span.length,
                protection,
                flags,
                file,
                offset,
            )
        }?;
        // INVARIANT: just mapped.
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?,
            length: span.length,
            skip: span.skip,
            writable,
        })
    }

    /// Bytes of the range.
    pub fn len(&self) -> usize {
        self.length - self.skip
    }

    /// The address of `count` bytes at `at` in the range.
    ///
    /// # Panics
    ///
    /// If they are not within the range.
    fn address(&self, at: usize, count: usize) -> *mut u8 {
        assert!(
            at <= self.len() && count <= self.len() - at,
            "{count} bytes at {at} of {}",
            self.len()
        );
        // By the invariant it is within the map, or the address of no bytes.
        self.start.as_ptr().wrapping_add(self.skip + at)
    }

    /// Copies bytes out of the range.
    ///
    /// # Panics
    ///
    /// If they are not within the range.
    pub fn load(&self, at: usize, bytes: &mut [u8]) {
        let mut from = self.address(at, bytes.len()).cast_const();
        let (head, body, tail) = split_at_words(from, bytes.len());
        let (head, rest) = bytes.split_at_mut(head);
        let (body, tail_bytes) = rest.split_at_mut(body);
        debug_assert_eq!(tail_bytes.len(), tail);
        for byte in head {
            // SAFETY: within the map, which may be loaded from.
            *byte = unsafe { from.read_volatile() };
            from = from.wrapping_add(1);
        }
        for word in body.chunks_exact_mut(WORD) {
            // SAFETY: as above, and aligned.
            let value = unsafe { from.cast::<u64>().read_volatile() };
            word.copy_from_slice(&value.to_ne_bytes());
            from = from.wrapping_add(WORD);
        }
        for byte in tail_bytes {
            // SAFETY: as above.
            *byte = unsafe { from.read_volatile() };
            from = from.wrapping_add(1);
        }
    }

    /// Copies bytes into the range.
    ///
    /// # Panics
    ///
    /// If they are not within the range, or it was mapped for loads only.
    pub fn store(&self, at: usize, bytes: &[u8]) {
        assert!(self.writable, "mapped for loads only");
        let mut to = self.address(at, bytes.len());
        let (head, body, _) = split_at_words(to, bytes.len());
        let (head, rest) = bytes.split_at(head);
        let (body, tail) = rest.split_at(body);
        for byte in head {
            // SAFETY: within the map, which may be stored to; no reference to it exists.
            unsafe { to.write_volatile(*byte) };
            to = to.wrapping_add(1);
        }
        for word in body.chunks_exact(WORD) {
            let mut value = [0; WORD];
            value.copy_from_slice(word);
            // SAFETY: as above, and aligned.
            unsafe { to.cast::<u64>().write_volatile(u64::from_ne_bytes(value)) };
            to = to.wrapping_add(WORD);
        }
        for byte in tail {
            // SAFETY: as above.
            unsafe { to.write_volatile(*byte) };
            to = to.wrapping_add(1);
        }
    }

    /// Loads the word of this index. What was stored before it (with release order)
    /// is seen by loads that follow.
    ///
    /// # Panics
    ///
    /// If it is not within the range, or the range does not begin at a multiple of 8.
    pub fn word(&self, index: usize) -> u64 {
        let at = index.saturating_mul(WORD);
        let word: *mut u64 = self.address(at, WORD).cast();
        assert!(word.is_aligned(), "the range is not aligned");
        // SAFETY: within the map and aligned; whoever stores to it (the driver) does so
        // atomically, and this value only loads while words are used.
        let word = unsafe { AtomicU64::from_ptr(word) };
        word.load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        // SAFETY: by the invariant the map belongs to this value, and no reference into
        // it exists.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(result.is_ok());
    }
}

/// Splits `length` bytes: numbers of bytes before the first aligned word, in words, and behind
/// them.
fn split_at_words(address: *const u8, length: usize) -> (usize, usize, usize) {
    let head = (address.addr().wrapping_neg() % WORD).min(length);
    let tail = (length - head) % WORD;
    (head, length - head - tail, tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn range(start: u64, length: u64) -> Range {
        Range { start, length }
    }

    fn numbered(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    #[test]
    fn nothing_can_be_mapped() {
        let map = Mapping::new(&file(b""), 0, range(0, 0), Access::Read).unwrap();
        assert_eq!(map.len(), 0);
        map.load(0, &mut []);
    }

    #[test]
    #[should_panic(expected = "2 bytes at 9 of 10")]
    fn access_stays_within_the_range() {
        let map = Mapping::new(&file(&[0; 100]), 0, range(5, 10), Access::Read).unwrap();
        map.load(9, &mut [0; 2]);
    }

    #[test]
    #[should_panic(expected = "mapped for loads only")]
    fn what_is_mapped_for_loads_is_not_stored_to() {
        let map = Mapping::new(&file(&[0; 100]), 0, range(0, 10), Access::Read).unwrap();
        map.store(0, b"a");
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let huge = Mapping::new(&file(b"a"), 0, range(0, u64::MAX), Access::Read);
        assert_eq!(huge.unwrap_err(), Errno::OVERFLOW);
        let beyond = Mapping::new(&file(b"a"), 1 << 63, range(1 << 63, 1), Access::Read);
        assert_eq!(beyond.unwrap_err(), Errno::OVERFLOW);
        let null = File::open("/dev/null").unwrap();
        let null = Mapping::new(&null, 0, range(0, 1), Access::Read);
        assert_eq!(null.unwrap_err(), Errno::NODEV);
    }

    #[test]
    fn words_are_counted_from_the_start_of_the_range() {
        let mut bytes = vec![0; 4096];
        bytes.extend(1u64.to_ne_bytes());
        bytes.extend(u64::MAX.to_ne_bytes());
        let map = Mapping::new(&file(&bytes), 4096, range(0, 16), Access::Read).unwrap();
        assert_eq!((map.word(0), map.word(1)), (1, u64::MAX));
    }

    #[test]
    fn words_are_aligned() {
        for address in 0..16usize {
            for length in 0..40 {
                let (head, body, tail) = split_at_words(ptr::without_provenance(address), length);
                assert_eq!(head + body + tail, length);
                assert!(head < WORD && tail < WORD && body.is_multiple_of(WORD));
                assert!(body == 0 || (address + head).is_multiple_of(WORD));
                // All aligned words are among the words.
                let aligned = address.next_multiple_of(WORD);
                let words = (address + length).saturating_sub(aligned) / WORD;
                assert_eq!(body, words * WORD, "{length} bytes at {address}");
            }
        }
    }

    proptest! {
        /// A map does to a file what the same does to a vector.
        #[test]
        fn a_map_is_the_range_of_the_file(
            start in 0..9000usize,
            length in 1..9000usize,
            at in any::<prop::sample::Index>(),
            data in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut model = numbered(20_000);
            let file = file(&model);
            let map = Mapping::new(
                &file,
                0,
                range(start as u64, length as u64),
                Access::ReadWrite,
            )
            .unwrap();
            prop_assert_eq!(map.len(), length);
            let mut seen = vec![0; length];
            map.load(0, &mut seen);
            prop_assert_eq!(&seen, &model[start..start + length]);

            let at = at.index(length);
            let data = &data[..data.len().min(length - at)];
            map.store(at, data);
            model[start + at..start + at + data.len()].copy_from_slice(data);
            let mut seen = vec![0; length - at];
            map.load(at, &mut seen);
            prop_assert_eq!(&seen, &model[start + at..start + length]);
            drop(map);
            let mut content = vec![0; model.len()];
            file.read_exact_at(&mut content, 0).unwrap();
            prop_assert_eq!(content, model);
        }
    }
}
