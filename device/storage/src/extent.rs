// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which bytes an operation is about, and whose it is.

/// Whose operations they are, for [`AsyncStorage::cancel`](crate::AsyncStorage::cancel). A number that the caller chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub u32);

/// Bytes of a storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Extent {
    /// The first byte after it. Ends at the top where it would wrap.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// The blocks of `granularity` bytes that it touches.
    pub(crate) const fn blocks(self, granularity: u64) -> Self {
        let offset = self.offset - self.offset % granularity;
        let past = self.end() % granularity;
        let end = match past {
            0 => self.end(),
            _ => self.end().saturating_add(granularity - past),
        };
        Self {
            offset,
            length: end - offset,
        }
    }

    pub(crate) const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}
