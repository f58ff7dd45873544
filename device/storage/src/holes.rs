// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where blocks of a file may be missing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes that one bit stands for: small enough not to waste much space when a write
/// into a hole allocates them all, large enough that the bits of 1 TiB take 2 MiB.
pub(crate) const GRANULE: u64 = 64 << 10;

/// Bits of a word.
const BITS: u64 = u64::BITS as u64;

/// Enough for all offsets below 2^63, see [`Holes::word`].
const CHUNKS: usize = (u64::BITS - GRANULE.ilog2() - BITS.ilog2()) as usize;

/// Words that are allocated together.
type Chunk = Box<[AtomicU64]>;

/// Notes in which parts of a file blocks may be missing because something was discarded
/// there. A bit stands for [`GRANULE`] bytes. Where it is 0, no block is missing, unless
/// one is discarded at this moment; where it is 1, blocks may be missing.
///
/// The bits are looked at for each transfer, without a lock. They are changed together
/// with the file under one lock.
#[derive(Debug)]
pub(crate) struct Holes {
    /// Chunk `n` has 2^n words. One that was never needed is not there: its bits are 0.
    chunks: [OnceLock<Chunk>; CHUNKS],
    /// Whether there ever was one, so that who never discards pays for a load.
    used: AtomicBool,
    /// Held while bits and file change.
    changing: Mutex<()>,
}

impl Default for Holes {
    fn default() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            used: AtomicBool::new(false),
            changing: Mutex::new(()),
        }
    }
}

/// Offsets and lengths are those of ranges below 2^63, which the caller has checked.
impl Holes {
    /// Whether blocks may be missing in a range.
    pub(crate) fn any(&self, offset: u64, length: u64) -> bool {
        // Relaxed: of a discard at the same time either is right to come first.
        self.used.load(Ordering::Relaxed)
            && words(offset, length).any(|(index, mask)| {
                self.word(index)
                    .is_some_and(|word| word.load(Ordering::Relaxed) & mask != 0)
            })
    }

    /// Notes that blocks may be missing in a range, and has `discard` give them up.
    pub(crate) fn discard<T>(&self, offset: u64, length: u64, discard: impl FnOnce() -> T) -> T {
        let _changing = self.changing();
        self.used.store(true, Ordering::Relaxed);
        for (index, mask) in words(offset, length) {
            self.word_or_new(index).fetch_or(mask, Ordering::Relaxed);
        }
        discard()
    }

    /// Has `allocate` see to it that a range, given as offset and length, has its blocks,
    /// where they may be missing: all of the granules that the range touches, up to the
    /// capacity, so that this is not done again for each write, or the range alone where
    /// there is no space for these.
    ///
    /// The capacity is that of the moment, not that of when the range was checked: what was
    /// added since may be in the last granule, and discarded again. What is beyond it gets
    /// its blocks when it is added.
    ///
    /// # Errors
    ///
    /// That of `allocate` for the range.
    pub(crate) fn fill<E>(
        &self,
        offset: u64,
        length: u64,
        capacity: impl Fn() -> u64,
        allocate: impl Fn(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.any(offset, length) {
            return Ok(());
        }
        let _changing = self.changing();
        if !self.any(offset, length) {
            return Ok(());
        }
        let start = offset - offset % GRANULE;
        let end = offset + length;
        let up_to = end.next_multiple_of(GRANULE).min(capacity().max(end));
        match allocate(start, up_to - start) {
            Ok(()) => {
                self.forget(start, up_to - start);
                Ok(())
            }
            Err(_) => allocate(offset, length),
        }
    }

    /// Has `overwrite` give a range new contents with all blocks. It returns whether it
    /// could; if not, it has changed nothing.
    ///
    /// # Errors
    ///
    /// That of `overwrite`. Blocks may be missing then: a file system may free those that
    /// there were before it finds no space for new ones.
    pub(crate) fn overwrite<E>(
        &self,
        offset: u64,
        length: u64,
        overwrite: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let _changing = self.changing();
        let used = self.used.swap(true, Ordering::Relaxed);
        let mut added = Vec::new();
        for (index, mask) in words(offset, length) {
            let before = self.word_or_new(index).fetch_or(mask, Ordering::Relaxed);
            if before & mask != mask {
                added.push((index, mask & !before));
            }
        }
        let done = overwrite()?;
        for (index, mask) in added {
            self.word_or_new(index).fetch_and(!mask, Ordering::Relaxed);
        }
        self.used.store(used, Ordering::Relaxed);
        let start = offset.next_multiple_of(GRANULE);
        let end = (offset + length) / GRANULE * GRANULE;
        if done && start < end {
            self.forget(start, end - start);
        }
        Ok(done)
    }

    fn forget(&self, offset: u64, length: u64) {
        for (index, mask) in words(offset, length) {
            if let Some(word) = self.word(index) {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // Protects nothing that could be left half done.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn word(&self, index: u64) -> Option<&AtomicU64> {
        let (chunk, at) = place(index);
        self.chunks.get(chunk)?.get()?.get(at)
    }

    fn word_or_new(&self, index: u64) -> &AtomicU64 {
        let (chunk, at) = place(index);
        let words = || (0..1_usize << chunk).map(|_| AtomicU64::new(0)).collect();
        &self.chunks[chunk].get_or_init(words)[at]
    }
}

/// The chunk and the place in it of a word.
fn place(index: u64) -> (usize, usize) {
    let chunk = (index + 1).ilog2();
    // Fits: below 2^chunk, of which there are some.
    (chunk as usize, (index + 1 - (1 << chunk)) as usize)
}

/// The words of a range, with the bits of it.
fn words(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = offset / GRANULE;
    // Behind the last one.
    let end = if length == 0 {
        first
    } else {
        (offset + length - 1) / GRANULE + 1
    };
    (first / BITS..end.div_ceil(BITS)).map(move |index| {
        let low = first.saturating_sub(index * BITS);
        let high = (end - index * BITS).min(BITS);
        (index, u64::MAX << low & u64::MAX >> (BITS - high))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    fn discard(holes: &Holes, offset: u64, length: u64) {
        holes.discard(offset, length, || {});
    }

    /// Fills a range; the ranges that were allocated for that.
    fn fill(holes: &Holes, offset: u64, length: u64, end: u64) -> Vec<(u64, u64)> {
        let calls = RefCell::new(Vec::new());
        let allocate = |offset, length| {
            calls.borrow_mut().push((offset, length));
            Ok::<_, Infallible>(())
        };
        let Ok(()) = holes.fill(offset, length, || end, allocate);
        calls.into_inner()
    }

    #[test]
    fn ho9_a_write_allocates_only_where_something_was_discarded() {
        let holes = Holes::default();
        let end = 1 << 40;
        assert_eq!(fill(&holes, 0, end, end), []);
        discard(&holes, 10 * GRANULE, GRANULE);
        assert_eq!(fill(&holes, 0, 10 * GRANULE, end), []);
        assert_eq!(fill(&holes, 11 * GRANULE, end - 11 * GRANULE, end), []);
        // Once, and for the writes beside it.
        assert_eq!(
            fill(&holes, 10 * GRANULE + 5, 1, end),
            [(10 * GRANULE, GRANULE)]
        );
        assert_eq!(fill(&holes, 0, end, end), []);
    }

    #[test]
    fn ho9_nothing_is_allocated_beyond_the_end() {
        let holes = Holes::default();
        let end = GRANULE + 10;
        discard(&holes, 0, end);
        assert_eq!(fill(&holes, GRANULE + 3, 1, end), [(GRANULE, 10)]);
        // The device has become smaller since the range was checked.
        discard(&holes, 0, end);
        assert_eq!(fill(&holes, GRANULE + 3, 4, GRANULE + 1), [(GRANULE, 7)]);
    }

    #[test]
    fn where_there_is_no_space_for_more_the_range_alone_is_allocated() {
        let holes = Holes::default();
        discard(&holes, 0, GRANULE);
        let small = |_, length| if length > 4096 { Err("full") } else { Ok(()) };
        assert_eq!(holes.fill(100, 4096, || GRANULE, small), Ok(()));
        assert!(holes.any(0, 1), "the rest is still missing");
        assert_eq!(holes.fill(100, 4097, || GRANULE, small), Err("full"));
        assert!(holes.any(0, 1));
    }

    #[test]
    fn overwriting_fills_what_it_covers() {
        let holes = Holes::default();
        discard(&holes, 0, 5 * GRANULE);
        let all = || Ok::<_, Infallible>(true);
        let none = || Ok::<_, Infallible>(false);
        assert_eq!(holes.overwrite(0, 5 * GRANULE, none), Ok(false));
        assert!(holes.any(GRANULE, 1));
        assert_eq!(holes.overwrite(GRANULE - 1, 2 * GRANULE, all), Ok(true));
        assert!(holes.any(0, GRANULE));
        assert!(!holes.any(GRANULE, GRANULE));
        assert!(holes.any(2 * GRANULE, 1));
        assert_eq!(holes.overwrite(10, 20, all), Ok(true));
        assert!(holes.any(0, GRANULE));
    }

    #[test]
    fn an_overwrite_that_fails_may_have_given_up_blocks() {
        let holes = Holes::default();
        discard(&holes, 9 * GRANULE, 1);
        let during = |holes: &Holes| holes.any(GRANULE, 1) && holes.any(2 * GRANULE, 1);
        let failed = holes.overwrite(GRANULE + 1, GRANULE, || {
            assert!(
                during(&holes),
                "a write at this moment takes it for allocated"
            );
            Err("full")
        });
        assert_eq!(failed, Err("full"));
        assert!(during(&holes));
        assert!(!holes.any(0, GRANULE) && !holes.any(3 * GRANULE, GRANULE));
        // What is beside a range that could be overwritten is as it was.
        let all = || Ok::<_, Infallible>(true);
        assert_eq!(holes.overwrite(4 * GRANULE + 1, GRANULE, all), Ok(true));
        assert!(!holes.any(4 * GRANULE, 2 * GRANULE));
        assert_eq!(holes.overwrite(2 * GRANULE, 10, all), Ok(true));
        assert!(holes.any(2 * GRANULE, 1));
    }

    #[test]
    fn the_largest_offsets_have_their_place() {
        let holes = Holes::default();
        let end = i64::MAX as u64;
        assert!(!holes.any(0, 1) && !holes.any(end - 1, 1));
        let last = (end - 1) / GRANULE / BITS;
        assert!(place(last).0 < CHUNKS);
        assert_eq!(words(end - 1, 1).count(), 1);
    }

    proptest! {
        /// The same as a set of granules.
        #[test]
        fn bits_are_those_of_the_granules(
            steps in prop::collection::vec(
                (0..5u8, 0..300 * GRANULE, 0..200 * GRANULE), 1..40),
        ) {
            let holes = Holes::default();
            let end = 500 * GRANULE;
            let mut missing = BTreeSet::new();
            for (what, offset, length) in steps {
                let touched: Vec<u64> = if length == 0 {
                    Vec::new()
                } else {
                    (offset / GRANULE..=(offset + length - 1) / GRANULE).collect()
                };
                let hit = touched.iter().any(|granule| missing.contains(granule));
                prop_assert_eq!(holes.any(offset, length), hit);
                match what {
                    0 => {
                        discard(&holes, offset, length);
                        missing.extend(touched);
                    }
                    1 => {
                        prop_assert_eq!(fill(&holes, offset, length, end).len(), usize::from(hit));
                        missing.retain(|granule| !touched.contains(granule));
                    }
                    2 => {
                        let full = || Err::<bool, _>(());
                        prop_assert!(holes.overwrite(offset, length, full).is_err());
                        missing.extend(touched);
                    }
                    3 => {
                        let Ok(_) = holes.overwrite(offset, length, || Ok::<_, Infallible>(false));
                    }
                    _ => {
                        let Ok(_) = holes.overwrite(offset, length, || Ok::<_, Infallible>(true));
                        missing.retain(|granule| {
                            granule * GRANULE < offset || (granule + 1) * GRANULE > offset + length
                        });
                    }
                }
                for granule in 0..500 {
                    prop_assert_eq!(
                        holes.any(granule * GRANULE + 7, 1),
                        missing.contains(&granule)
                    );
                }
            }
        }
    }
}
