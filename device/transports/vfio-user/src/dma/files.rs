// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The client's files that are mapped: each once, for all ranges that show parts of it.
//!
//! A strict IOMMU maps and unmaps with each request, and may have nothing mapped in between. So
//! that this costs no mmap, a few files stay mapped without a range. They are not many and not
//! for long, because the memory of a file that the client has removed is not given back while it
//! is mapped:
//!
//! ```text
//!   used by ranges ──> idle ──> dropped: MAX_IDLE are idle since, or MAX_IDLE_MAPS ranges were
//!        ^               │              mapped since
//!        └───────────────┘
//! ```
//!
//! A file whose last range showed half of it or more is dropped at once. That is no IOMMU's way
//! to unmap but a memory device that is unplugged.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::file::{Examined, FileId, FileMapping};
use super::{DmaError, MAX_FILES};

/// Number of files that stay mapped without a range.
const MAX_IDLE: usize = 4;

/// Number of calls of [`Files::acquire`] after which a file that stayed idle is dropped.
const MAX_IDLE_MAPS: u64 = 4096;

/// All files that are mapped.
///
/// # Invariants
///
/// `idle` has exactly the files of `mapped` that have no range, the longest idle first.
#[derive(Debug, Default)]
pub(super) struct Files {
    mapped: HashMap<FileId, Mapped>,
    idle: VecDeque<Idle>,
    acquired: u64,
}

#[derive(Debug)]
struct Mapped {
    file: Arc<FileMapping>,
    /// Number of ranges that show a part of the file.
    ranges: usize,
}

#[derive(Debug)]
struct Idle {
    id: FileId,
    /// [`Files::acquired`] at that moment.
    since: u64,
}

/// A file for one more range.
#[derive(Debug)]
pub(super) struct Acquired {
    /// The mapping.
    pub(super) file: Arc<FileMapping>,
    /// Whether it replaces one of the same file, which ranges may still show.
    pub(super) replaces: bool,
}

impl Files {
    /// The mapping of `file` with at least `end` bytes, writable if `write`, for one more range.
    /// [`Files::release`] is its opposite.
    pub(super) fn acquire(
        &mut self,
        file: &Examined,
        end: u64,
        write: bool,
    ) -> Result<Acquired, DmaError> {
        if write && !file.writable {
            return Err(DmaError::ReadOnly);
        }
        self.acquired += 1;
        let mut replaces = false;
        let used = self.mapped.len() - self.idle.len();
        if used >= MAX_FILES && !self.mapped.contains_key(&file.id) {
            return Err(DmaError::TooManyFiles);
        }
        let mapped = match self.mapped.entry(file.id) {
            Entry::Vacant(vacant) => vacant.insert(Mapped {
                file: map(file, write)?,
                ranges: 0,
            }),
            Entry::Occupied(occupied) => {
                let mapped = occupied.into_mut();
                let old = &mapped.file;
                if old.length() < end || write && !old.writable {
                    let new = map(file, write)?;
                    let worse = new.length() < old.length() || old.writable && !new.writable;
                    replaces = mapped.ranges > 0;
                    if replaces && worse {
                        return Err(DmaError::FileChanged);
                    }
                    mapped.file = new;
                }
                mapped
            }
        };
        mapped.ranges += 1;
        let file = Arc::clone(&mapped.file);
        // INVARIANT: it has a range now.
        self.idle.retain(|idle| idle.id != file.id);
        self.drop_stale();
        Ok(Acquired { file, replaces })
    }

    /// One more range shows a part of `file`: another one was split.
    pub(super) fn split(&mut self, file: &FileMapping) {
        if let Some(mapped) = self.mapped.get_mut(&file.id) {
            mapped.ranges += 1;
        }
    }

    /// A range of `size` bytes no longer shows a part of `file`.
    pub(super) fn release(&mut self, file: &FileMapping, size: u64) {
        let Some(mapped) = self.mapped.get_mut(&file.id) else {
            debug_assert!(false, "a range shows a file that is not mapped");
            return;
        };
        mapped.ranges -= 1;
        if mapped.ranges > 0 {
            return;
        }
        if size >= mapped.file.length() / 2 {
            self.mapped.remove(&file.id);
            return;
        }
        // INVARIANT: it has no range any more.
        self.idle.push_back(Idle {
            id: file.id,
            since: self.acquired,
        });
        self.drop_stale();
    }

    fn drop_stale(&mut self) {
        while let Some(idle) = self.idle.front() {
            if self.idle.len() <= MAX_IDLE && self.acquired - idle.since < MAX_IDLE_MAPS {
                break;
            }
            self.mapped.remove(&idle.id);
            self.idle.pop_front();
        }
    }
}

/// Maps `file`, writable if `write`.
fn map(file: &Examined, write: bool) -> Result<Arc<FileMapping>, DmaError> {
    let mapping = file.map()?;
    if write && !mapping.writable {
        return Err(DmaError::ReadOnly);
    }
    Ok(Arc::new(mapping))
}
