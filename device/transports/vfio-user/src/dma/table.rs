// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ranges that the client has mapped.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::file::Examined;
use super::files::Files;
use super::ranges::{Part, Range, Ranges};
use super::{DmaError, DmaMap, DmaMemory, DmaUnmap, MAX_RANGES, PAGE_SIZE};

/// The ranges that the client has mapped. Belongs to the thread that executes its messages.
///
/// # Invariants
///
/// Each range with memory is counted by `files`, and `with_memory` counts all of them.
#[derive(Debug, Default)]
pub struct DmaTable {
    ranges: Arc<Ranges>,
    files: Files,
    with_memory: usize,
}

impl DmaTable {
    /// A table without ranges.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of ranges, those without memory included.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Maps a range (vfio-user, `VFIO_USER_DMA_MAP`). Does not block, except for what the file's
    /// file system takes to map it.
    ///
    /// The range has no memory without a file, or if `is_own` says that the file holds memory of
    /// the device itself: QEMU maps the device's own BAR too, and a request with a segment in it
    /// would copy that memory onto itself. Such a range is only remembered.
    ///
    /// # Errors
    ///
    /// The numbers do not fit each other or the file, an address is mapped already (also if
    /// the range is the same), there are too many ranges, or the file cannot be mapped.
    pub fn map(
        &mut self,
        map: DmaMap,
        file: Option<OwnedFd>,
        is_own: impl Fn(&File) -> bool,
    ) -> Result<(), DmaError> {
        let DmaMap {
            address,
            size,
            offset,
            access,
        } = map;
        let last = last_address(address, size, offset)?;
        if self.ranges.overlapping(address, last).next().is_some() {
            return Err(DmaError::Overlap { address, size });
        }
        if self.ranges.len() >= MAX_RANGES {
            return Err(DmaError::TooManyRanges);
        }
        let file = file.map(File::from).filter(|file| !is_own(file));
        let memory = match file {
            Some(file) => Some(self.part(map, file)?),
            None => None,
        };
        self.with_memory += usize::from(memory.is_some());
        // INVARIANT: `last_address` has checked the order, `part` that the file is mapped so far.
        Arc::make_mut(&mut self.ranges).insert(Range {
            first: address,
            last,
            access,
            memory,
        });
        Ok(())
    }

    /// Unmaps ranges (vfio-user, `VFIO_USER_DMA_UNMAP`).
    ///
    /// All addresses of the unmapped range go, and no other: it may be one mapped range or
    /// several, with gaps or without, and may leave a part of the first and of the last ("removing
    /// a portion of a DMA region is possible", says the protocol). That there is nothing to unmap
    /// is no error: QEMU unmaps by the rules of `VFIO_IOMMU_UNMAP_DMA` of Linux, and before
    /// it maps the ranges of an IOMMU anew, it unmaps the whole address space in some large steps.
    ///
    /// # Errors
    ///
    /// The numbers do not fit each other, or a range would have to be split and there are too
    /// many already.
    pub fn unmap(&mut self, unmap: DmaUnmap) -> Result<(), DmaError> {
        let (first, last) = match unmap {
            DmaUnmap::All => {
                *self = Self::new();
                return Ok(());
            }
            DmaUnmap::Range { address, size } => (address, last_address(address, size, 0)?),
        };
        // The number of ranges grows only if both ends of one stay.
        let is_split = |range: &Range| range.first < first && range.last > last;
        match self.ranges.overlapping(first, last).next() {
            None => return Ok(()),
            Some(range) if is_split(range) && self.ranges.len() >= MAX_RANGES => {
                return Err(DmaError::TooManyRanges);
            }
            Some(_) => {}
        }
        let (removed, left) = Arc::make_mut(&mut self.ranges).remove(first, last);
        // INVARIANT: those that stay are counted first, so that their file does not go idle.
        for part in left.iter().filter_map(|range| range.memory.as_ref()) {
            self.with_memory += 1;
            self.files.split(&part.file);
        }
        for range in &removed {
            if let Some(part) = &range.memory {
                self.with_memory -= 1;
                self.files.release(&part.file, range.size());
            }
        }
        Ok(())
    }

    /// The memory that is mapped now; none if no range has any. Costs no more than a reference.
    pub fn memory(&self) -> Option<DmaMemory> {
        (self.with_memory > 0).then(|| DmaMemory::new(Arc::clone(&self.ranges)))
    }

    /// The memory of the range `map`, whose numbers fit each other.
    fn part(&mut self, map: DmaMap, file: File) -> Result<Part, DmaError> {
        let file = Examined::new(file)?;
        let DmaMap { size, offset, .. } = map;
        let end = offset.checked_add(size).filter(|end| *end <= file.length);
        let end = end.ok_or(DmaError::BeyondFile {
            offset,
            size,
            length: file.length,
        })?;
        let acquired = self.files.acquire(&file, end, map.access.has_write())?;
        if acquired.replaces {
            Arc::make_mut(&mut self.ranges).replace_file(&acquired.file);
        }
        Ok(Part {
            file: acquired.file,
            offset,
        })
    }
}

/// The last address of a range, if its numbers fit each other.
fn last_address(address: u64, size: u64, offset: u64) -> Result<u64, DmaError> {
    if size == 0 {
        return Err(DmaError::Empty { address });
    }
    if !(address | size | offset).is_multiple_of(PAGE_SIZE) {
        return Err(DmaError::Misaligned {
            address,
            size,
            offset,
        });
    }
    // A range may end with the last address there is.
    address
        .checked_add(size - 1)
        .ok_or(DmaError::Overflow { address, size })
}
