// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ranges of addresses in order, of which a copy is cheap.
//!
//! The ranges are in chunks that copies share. A change copies one chunk and the list of them
//! if somebody else still uses it, so its cost is some hundred ranges however many there are,
//! and a copy costs nothing.

use std::sync::Arc;

use vm_memory::Permissions;

use super::file::FileMapping;

/// Number of ranges in a chunk at most.
const CHUNK: usize = 256;

/// A range of addresses and the memory that it shows.
///
/// # Invariants
///
/// `first <= last`. With memory, the file is mapped from the offset on for the size of the range.
#[derive(Clone, Debug)]
pub(super) struct Range {
    /// First address.
    pub(super) first: u64,
    /// Last address. The one after it may exceed 64 bits.
    pub(super) last: u64,
    /// Accesses that the client allows.
    pub(super) access: Permissions,
    /// None for a range that the device cannot reach.
    pub(super) memory: Option<Part>,
}

/// A part of a file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The file.
    pub(super) file: Arc<FileMapping>,
    /// First byte of the part in the file.
    pub(super) offset: u64,
}

impl Range {
    /// Number of bytes. That of a range with memory is not 0: no file has 2^64 bytes.
    pub(super) fn size(&self) -> u64 {
        (self.last - self.first).wrapping_add(1)
    }

    /// The same memory from `first` to `last`, which are within the range.
    fn slice(&self, first: u64, last: u64) -> Self {
        debug_assert!(self.first <= first && first <= last && last <= self.last);
        Self {
            first,
            last,
            access: self.access,
            memory: self.memory.as_ref().map(|part| Part {
                file: Arc::clone(&part.file),
                offset: part.offset + (first - self.first),
            }),
        }
    }
}

#[derive(Clone, Debug)]
struct Chunk {
    /// First address of the first range.
    first: u64,
    ranges: Arc<Vec<Range>>,
}

/// Ranges in order of their addresses.
///
/// # Invariants
///
/// Ranges do not overlap and are in order, within a chunk and from chunk to chunk. No chunk is
/// empty. `Chunk::first` is right. `len` is the number of all.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    chunks: Vec<Chunk>,
    len: usize,
}

impl Ranges {
    /// Number of ranges.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The range that `address` is in.
    pub(super) fn find(&self, address: u64) -> Option<&Range> {
        let chunk = self.chunk_of(address)?;
        let ranges = &self.chunks[chunk].ranges;
        let after = ranges.partition_point(|range| range.first <= address);
        let range = ranges.get(after.checked_sub(1)?)?;
        (address <= range.last).then_some(range)
    }

    /// All ranges with an address from `first` to `last`, in order.
    pub(super) fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = &Range> {
        let start = self.chunk_of(first).unwrap_or(0);
        self.chunks[start..]
            .iter()
            .take_while(move |chunk| chunk.first <= last)
            .flat_map(move |chunk| {
                let (start, end) = within(&chunk.ranges, first, last);
                &chunk.ranges[start..end]
            })
    }

    /// Inserts a range. None with an address of it may be there.
    pub(super) fn insert(&mut self, range: Range) {
        debug_assert!(self.overlapping(range.first, range.last).next().is_none());
        self.len += 1;
        let index = self.chunk_of(range.first).unwrap_or(0);
        let Some(chunk) = self.chunks.get_mut(index) else {
            self.chunks.push(Chunk {
                first: range.first,
                ranges: Arc::new(vec![range]),
            });
            return;
        };
        chunk.first = chunk.first.min(range.first);
        let ranges = Arc::make_mut(&mut chunk.ranges);
        let position = ranges.partition_point(|other| other.first < range.first);
        ranges.insert(position, range);
        if ranges.len() > CHUNK {
            let rest = ranges.split_off(CHUNK / 2);
            let rest = Chunk {
                first: rest[0].first,
                ranges: Arc::new(rest),
            };
            self.chunks.insert(index + 1, rest);
        }
    }

    /// Removes all addresses from `first` to `last`. Returns the ranges that had some. What is
    /// left of the first and of the last of them stays, at most two ranges, also returned.
    pub(super) fn remove(&mut self, first: u64, last: u64) -> (Vec<Range>, Vec<Range>) {
        let mut removed = Vec::new();
        let mut left = Vec::new();
        let start = self.chunk_of(first).unwrap_or(0);
        let end = self.chunks.partition_point(|chunk| chunk.first <= last);
        for chunk in self.chunks.get_mut(start..end).into_iter().flatten() {
            let (from, to) = within(&chunk.ranges, first, last);
            if from < to {
                removed.extend(Arc::make_mut(&mut chunk.ranges).drain(from..to));
            }
            if let Some(range) = chunk.ranges.first() {
                chunk.first = range.first;
            }
        }
        self.len -= removed.len();
        if start < end {
            self.compact(start, end);
        }
        // At most one each: ranges do not overlap.
        for range in &removed {
            if range.first < first {
                left.push(range.slice(range.first, first - 1));
            }
            if range.last > last {
                left.push(range.slice(last + 1, range.last));
            }
        }
        for range in &left {
            self.insert(range.clone());
        }
        (removed, left)
    }

    /// Has all ranges that show a part of the file of `file` show it through that mapping, which
    /// must be as long as the one that it replaces, and writable if that is.
    pub(super) fn replace_file(&mut self, file: &Arc<FileMapping>) {
        let shows = |range: &Range| {
            let part = range.memory.as_ref();
            part.is_some_and(|part| part.file.id == file.id)
        };
        for chunk in &mut self.chunks {
            if !chunk.ranges.iter().any(shows) {
                continue;
            }
            for range in Arc::make_mut(&mut chunk.ranges) {
                if let Some(part) = range.memory.as_mut().filter(|part| part.file.id == file.id) {
                    part.file = Arc::clone(file);
                }
            }
        }
    }

    /// Index of the chunk that `address` is in if it is in any.
    fn chunk_of(&self, address: u64) -> Option<usize> {
        self.chunks
            .partition_point(|chunk| chunk.first <= address)
            .checked_sub(1)
    }

    /// Drops the empty ones of the chunks from `start` to before `end`, and merges the first one
    /// with its neighbours if they are small.
    fn compact(&mut self, start: usize, end: usize) {
        let empty = |chunk: &Chunk| chunk.ranges.is_empty();
        if self.chunks[start..end].iter().any(empty) {
            self.chunks.retain(|chunk| !empty(chunk));
        }
        self.merge(start);
        if let Some(previous) = start.checked_sub(1) {
            self.merge(previous);
        }
    }

    /// Merges a chunk with the next one if both are small.
    fn merge(&mut self, index: usize) {
        let Some([chunk, next, ..]) = self.chunks.get_mut(index..) else {
            return;
        };
        if chunk.ranges.len() + next.ranges.len() <= CHUNK / 2 {
            Arc::make_mut(&mut chunk.ranges).extend(next.ranges.iter().cloned());
            self.chunks.remove(index + 1);
        }
    }
}

/// Indices from and to which `ranges` have addresses from `first` to `last`.
fn within(ranges: &[Range], first: u64, last: u64) -> (usize, usize) {
    let start = ranges.partition_point(|range| range.last < first);
    let end = ranges.partition_point(|range| range.first <= last);
    (start, end.max(start))
}
