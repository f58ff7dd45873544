// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The two kinds of entries, as values and as words.

use crate::layout::{COMPLETION_WORDS, SUBMISSION_WORDS};

/// Index of the word of a submission entry that makes it valid. It is written last.
pub(crate) const SUBMISSION_LAP_WORD: usize = 0;

/// Index of the word with `user_data` of a submission entry.
pub(crate) const SUBMISSION_USER_DATA_WORD: usize = 6;

/// Index of the word of a completion entry that makes it valid. It is written last.
pub(crate) const COMPLETION_LAP_WORD: usize = 1;

/// A request of a process.
///
/// | word | bits | field |
/// |---|---|---|
/// | 0 | 0..32 | lap |
/// | 0 | 32..48 | `opcode` |
/// | 0 | 48..64 | `flags` |
/// | 1 | 0..32 | `region` |
/// | 1 | 32..64 | reserved, 0 |
/// | 2 | | `offset` |
/// | 3 | | `length` |
/// | 4 | | `region_offset` |
/// | 5 | | `argument` |
/// | 6 | | `user_data` |
/// | 7 | | reserved, 0 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Submission {
    /// The operation, as in a request of a virtqueue.
    pub opcode: u16,
    /// Flags of the operation, as in a request of a virtqueue.
    pub flags: u16,
    /// Handle of the region that has the data; 0 for an operation without data.
    pub region: u32,
    /// Offset in the device memory in bytes.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Offset in the region in bytes.
    pub region_offset: u64,
    /// Argument of the operation, as in a request of a virtqueue.
    pub argument: u64,
    /// Returned with the completion, and not interpreted.
    pub user_data: u64,
}

/// Error: a reserved bit of a submission entry is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedBits;

impl core::fmt::Display for ReservedBits {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a reserved bit of a submission entry is set; it must be 0")
    }
}

impl core::error::Error for ReservedBits {}

impl Submission {
    /// The words of the entry in this lap.
    pub const fn words(&self, lap: u32) -> [u64; SUBMISSION_WORDS] {
        [
            lap as u64 | (self.opcode as u64) << 32 | (self.flags as u64) << 48,
            self.region as u64,
            self.offset,
            self.length,
            self.region_offset,
            self.argument,
            self.user_data,
            0,
        ]
    }

    /// The request in these words, whatever their lap is. The meaning of the fields is the
    /// device model's to check.
    pub const fn parse(words: [u64; SUBMISSION_WORDS]) -> Result<Self, ReservedBits> {
        if words[1] >> 32 != 0 || words[7] != 0 {
            return Err(ReservedBits);
        }
        Ok(Self {
            opcode: (words[0] >> 32) as u16,
            flags: (words[0] >> 48) as u16,
            region: words[1] as u32,
            offset: words[2],
            length: words[3],
            region_offset: words[4],
            argument: words[5],
            user_data: words[SUBMISSION_USER_DATA_WORD],
        })
    }

    /// The lap in word 0.
    pub const fn lap(word: u64) -> u32 {
        word as u32
    }
}

/// The end of a request.
///
/// | word | bits | field |
/// |---|---|---|
/// | 0 | | `user_data` |
/// | 1 | 0..32 | `result` |
/// | 1 | 32..48 | `status` |
/// | 1 | 48..64 | lap |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// `user_data` of the submission.
    pub user_data: u64,
    /// Number of bytes moved, or as the operation says.
    pub result: u32,
    /// Status, as in a request of a virtqueue.
    pub status: u16,
}

impl Completion {
    /// The words of the entry in this lap.
    pub const fn words(&self, lap: u16) -> [u64; COMPLETION_WORDS] {
        [
            self.user_data,
            self.result as u64 | (self.status as u64) << 32 | (lap as u64) << 48,
        ]
    }

    /// The completion in these words, whatever their lap is.
    pub const fn parse(words: [u64; COMPLETION_WORDS]) -> Self {
        Self {
            user_data: words[0],
            result: words[1] as u32,
            status: (words[1] >> 32) as u16,
        }
    }

    /// The lap in word 1.
    pub const fn lap(word: u64) -> u16 {
        (word >> 48) as u16
    }
}
