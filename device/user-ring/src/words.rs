// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Access to an area of a queue, one word at a time.
//!
//! The other side may change any word at any time, so every access is an atomic operation on a
//! whole word. A side that only reads an area has only [`Words`] of it.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::layout::Word;

/// An area that can be read.
pub trait Words {
    /// Number of words of the area. It never becomes less.
    fn word_count(&self) -> usize;

    /// Loads a word, which is less than [`Self::word_count`], exactly once.
    fn load(&self, word: Word, ordering: Ordering) -> u64;
}

/// An area that can be read and written.
pub trait WriteWords: Words {
    /// Stores a word, which is less than [`Words::word_count`].
    fn store(&self, word: Word, value: u64, ordering: Ordering);
}

impl Words for &[AtomicU64] {
    fn word_count(&self) -> usize {
        self.len()
    }

    #[inline]
    fn load(&self, word: Word, ordering: Ordering) -> u64 {
        u64::from_le(self[word.index()].load(ordering))
    }
}

impl WriteWords for &[AtomicU64] {
    #[inline]
    fn store(&self, word: Word, value: u64, ordering: Ordering) {
        self[word.index()].store(value.to_le(), ordering);
    }
}

/// Error: an area has fewer words than its queue needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaTooSmall {
    /// Name of the area.
    pub area: &'static str,
    /// Number of words that the queue needs.
    pub needed: usize,
    /// Number of words that the area has.
    pub words: usize,
}

impl core::fmt::Display for AreaTooSmall {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self {
            area,
            needed,
            words,
        } = self;
        write!(
            f,
            "the {area} area has {words} words; the queue needs {needed}"
        )
    }
}

impl core::error::Error for AreaTooSmall {}

/// Checks once what makes each [`Word`] of a queue an index in range.
pub(crate) fn check_size(
    area: &'static str,
    words: &impl Words,
    needed: usize,
) -> Result<(), AreaTooSmall> {
    let words = words.word_count();
    if words < needed {
        return Err(AreaTooSmall {
            area,
            needed,
            words,
        });
    }
    Ok(())
}
