// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sizes, positions, and where each word of an area is.
//!
//! All words have 64 bits and are little-endian, so no word is ever accessed with two sizes.

/// Bytes of a word.
pub const WORD_BYTES: usize = 8;

/// Words of the page with the header, before the entries.
const HEADER_WORDS: usize = 4096 / WORD_BYTES;

/// Words of a submission entry: one cache line, so a request is never on the line of its
/// neighbour, which the process may be writing.
pub const SUBMISSION_WORDS: usize = 8;

/// Words of a completion entry.
pub const COMPLETION_WORDS: usize = 2;

/// Words of a queue in the kernel area: one cache line.
pub const KERNEL_WORDS: usize = 8;

/// The place of a word in an area, counted in words.
///
/// # Invariants
///
/// The word is within an area that has at least the size that [`Entries`] gives for its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(usize);

impl Word {
    /// Index of the word in the area.
    pub const fn index(self) -> usize {
        self.0
    }
}

// INVARIANT: The header is a part of each area of its kind.

/// User area: number of completions that the process has reaped. Written before `poll` only.
pub const REAPED: Word = Word(0);

/// Device area: not 0 if the device sleeps and needs a kick after a submission.
pub const NEED_WAKEUP: Word = Word(0);

/// Device area: 0 while the queue lives, otherwise why it ended. On the line of
/// [`NEED_WAKEUP`], because a process reads both where it finds nothing to do.
pub const STATE: Word = Word(1);

/// Device area: number of submissions that the device has taken, written once for each turn.
/// On a line of its own with [`COMPLETED`], which no process polls.
pub const TAKEN: Word = Word(8);

/// Device area: number of completions that the device has written, stored once for each turn.
pub const COMPLETED: Word = Word(9);

/// Device area: not 0 from the time when a device begins to serve the queue.
pub const STARTED: Word = Word(10);

/// Kernel area: incremented by the driver for each wait.
pub const ARMED: Word = Word(0);

/// Number of entries of each ring of a queue: a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// At most [`Entries::MAX_LOG2`].
    log2: u8,
}

impl Entries {
    /// Logarithm of the least number.
    pub const MIN_LOG2: u8 = 4;

    /// Logarithm of the greatest number.
    pub const MAX_LOG2: u8 = 10;

    /// `1 << log2` entries; `None` if `log2` is not from [`Self::MIN_LOG2`] to
    /// [`Self::MAX_LOG2`].
    pub const fn from_log2(log2: u8) -> Option<Self> {
        if log2 < Self::MIN_LOG2 || log2 > Self::MAX_LOG2 {
            return None;
        }
        Some(Self { log2 })
    }

    /// Fewer than a queue may have, because each slot multiplies the states of a model.
    #[cfg(any(test, loom))]
    pub(crate) const fn few(log2: u8) -> Self {
        assert!(log2 < Self::MIN_LOG2);
        Self { log2 }
    }

    /// The number.
    pub const fn get(self) -> usize {
        1 << self.log2
    }

    /// Words of the user area.
    pub const fn user_words(self) -> usize {
        HEADER_WORDS + self.get() * SUBMISSION_WORDS
    }

    /// Words of the device area.
    pub const fn device_words(self) -> usize {
        HEADER_WORDS + self.get() * COMPLETION_WORDS
    }
}

/// Number of entries that went through a ring before this one. Wraps after 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position(u64);

impl Position {
    /// A position from its number. Any number is a position.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// How many entries this position is ahead of `earlier`.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The slot of the position.
    pub const fn slot(self, entries: Entries) -> Slot {
        // INVARIANT: The mask is one less than the number of entries.
        Slot((self.0 & (entries.get() as u64 - 1)) as usize)
    }

    /// The number of the pass through the ring, from 1.
    const fn pass(self, entries: Entries) -> u64 {
        (self.0 >> entries.log2).wrapping_add(1)
    }

    /// The lap of a submission entry.
    pub const fn submission_lap(self, entries: Entries) -> u32 {
        self.pass(entries) as u32
    }

    /// The lap of a completion entry.
    pub const fn completion_lap(self, entries: Entries) -> u16 {
        self.pass(entries) as u16
    }
}

/// A place in a ring.
///
/// # Invariants
///
/// Less than the number of entries for which it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

impl Slot {
    /// Index of the slot in the ring.
    pub const fn index(self) -> usize {
        self.0
    }

    /// The words of the submission entry in this slot, in the user area.
    pub(crate) const fn submission(self, word: usize) -> Word {
        assert!(word < SUBMISSION_WORDS);
        // INVARIANT: The slot is less than the number of entries, the word less than their size.
        Word(HEADER_WORDS + self.0 * SUBMISSION_WORDS + word)
    }

    /// The words of the completion entry in this slot, in the device area.
    pub(crate) const fn completion(self, word: usize) -> Word {
        assert!(word < COMPLETION_WORDS);
        // INVARIANT: As for a submission.
        Word(HEADER_WORDS + self.0 * COMPLETION_WORDS + word)
    }
}
