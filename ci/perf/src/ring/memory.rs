// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory that both processes map: where everything is, and what a block contains.

use std::sync::atomic::Ordering::Relaxed;

use clap::ValueEnum;
use ringbar_user_ring::layout::{Entries, KERNEL_WORDS, WORD_BYTES};
use serde::Serialize;

use crate::memory::{Mapping, PAGE};

/// How much of a block a process reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Read {
    /// All words
    All,
    /// The first word
    First,
}

/// Where everything is in the memory that both processes map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) entries: Entries,
    pub(super) block: usize,
    /// Bytes of the storage.
    pub(super) size: usize,
}

/// The most for the size of the storage.
const MAX_SIZE: usize = 1 << 32;

impl Layout {
    pub(super) fn new(block: usize, size: usize, depth: u16) -> Result<Self, String> {
        let log2 = depth.next_power_of_two().ilog2() as u8;
        let entries = Entries::from_log2(log2.max(Entries::MIN_LOG2))
            .ok_or_else(|| format!("{depth} is too deep"))?;
        let is_size = |bytes: usize| bytes != 0 && bytes.is_multiple_of(WORD_BYTES);
        if !is_size(block) || !is_size(size) || block > size || size > MAX_SIZE {
            return Err(format!(
                "--block {block} and --size {size} must be multiples of 8, the block at most the \
                 size, and the size at most {MAX_SIZE}"
            ));
        }
        Ok(Self {
            entries,
            block,
            size,
        })
    }

    pub(super) fn device(self) -> usize {
        self.entries.user_words() * WORD_BYTES
    }

    pub(super) fn kernel(self) -> usize {
        self.device() + self.entries.device_words() * WORD_BYTES
    }

    pub(super) fn storage(self) -> usize {
        (self.kernel() + KERNEL_WORDS * WORD_BYTES).next_multiple_of(PAGE)
    }

    pub(super) fn region(self) -> usize {
        self.storage() + self.size
    }

    pub(super) fn length(self) -> usize {
        self.region() + self.entries.get() * self.block
    }
}

/// What the words of blocks add up to, where each word of the storage has its index as value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    words: usize,
}

impl Reader {
    pub(super) fn new(read: Read, block: usize) -> Self {
        let words = match read {
            Read::All => block / WORD_BYTES,
            Read::First => 1,
        };
        Self { words }
    }

    /// Fills the storage.
    pub(super) fn fill(memory: &Mapping, layout: Layout) {
        let words = memory.words(layout.storage(), layout.size / WORD_BYTES);
        for (index, word) in words.iter().enumerate() {
            word.store(index as u64, Relaxed);
        }
    }

    /// Reads a copy of the block that is at `offset` in the storage.
    #[inline]
    pub(super) fn check(self, memory: &Mapping, at: usize, offset: u64) -> Result<(), String> {
        let words = memory.words(at, self.words);
        let sum = words
            .iter()
            .fold(0u64, |sum, word| sum.wrapping_add(word.load(Relaxed)));
        let (count, first) = (self.words as u64, offset / WORD_BYTES as u64);
        if sum != count * first + count * (count - 1) / 2 {
            return Err(format!("a request has not brought the block at {offset}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_do_not_overlap() {
        const SIZE: usize = 1 << 20;
        for (block, depth) in [(8, 1), (4096, 32), (1 << 20, 1024)] {
            let layout = Layout::new(block, SIZE, depth).unwrap();
            assert!(layout.entries.get() >= usize::from(depth));
            let places = [0, layout.device(), layout.kernel(), layout.storage()];
            assert!(places.is_sorted() && places.iter().all(|place| place % 64 == 0));
            assert_eq!(
                layout.length() - layout.region(),
                layout.entries.get() * block
            );
        }
        for (block, size) in [(0, SIZE), (12, SIZE), (8, 12), (16, 8), (8, MAX_SIZE + 8)] {
            assert!(Layout::new(block, size, 1).is_err(), "{block} {size}");
        }
        assert!(Layout::new(8, SIZE, 1025).is_err());
    }

    #[test]
    fn a_block_is_the_one_that_was_requested() {
        const BLOCK: usize = 64;
        let memory = Mapping::private(BLOCK).unwrap();
        let fill = |first: u64| {
            for (index, word) in memory.words(0, 8).iter().enumerate() {
                word.store(first + index as u64, Relaxed);
            }
        };
        for read in [Read::All, Read::First] {
            let reader = Reader::new(read, BLOCK);
            fill(16);
            reader.check(&memory, 0, 128).unwrap();
            reader.check(&memory, 0, 64).unwrap_err();
            memory.words(0, 8)[7].store(0, Relaxed);
            assert_eq!(reader.check(&memory, 0, 128).is_ok(), read == Read::First);
        }
    }
}
