// SPDX-License-Identifier: GPL-2.0

//! Lists of segments, on the stack of a call or on the heap. The lists do not own the pages.
//!
//! C header: [`include/linux/scatterlist.h`](srctree/include/linux/scatterlist.h)

use core::mem::MaybeUninit;
use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*, //
};

/// Number of segments that a call can have without an allocation.
pub(super) const INLINE_SEGMENTS: usize = 32;

/// Marks the last entry of a scatterlist.
pub(super) const SG_END: c_ulong = bindings::SG_END as c_ulong;

/// Contiguous memory of at least one byte, beginning in the page to which `page_link` points.
pub(super) type Segment = bindings::scatterlist;

/// Limits of the data of one request.
#[derive(Clone, Copy)]
pub(crate) struct SegmentLimits {
    total: usize,
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl SegmentLimits {
    /// At most `total` bytes, in at most `count` segments of at most `bytes` each; at least
    /// one segment with room for a page.
    pub(crate) fn new(total: usize, count: usize, bytes: usize) -> Self {
        // A length in a segment has 32 bits.
        const MAX: usize = (u32::MAX as usize / PAGE_SIZE) * PAGE_SIZE;
        Self {
            total: total.max(1),
            count: count.max(1),
            bytes: bytes.clamp(PAGE_SIZE, MAX),
        }
    }

    /// Greatest number of bytes of all segments together.
    #[inline]
    pub(crate) fn total(self) -> usize {
        self.total
    }
}

/// Room for a few segments, on the stack of the call.
///
/// # Invariants
///
/// The first `used` entries are initialised.
pub(crate) struct InlineSegments {
    entries: [MaybeUninit<Segment>; INLINE_SEGMENTS],
    used: usize,
}

impl InlineSegments {
    /// An empty list. The entries are not initialised: most calls need one of them.
    #[inline]
    pub(crate) fn new() -> Self {
        // INVARIANT: No entry is used.
        Self {
            entries: [const { MaybeUninit::uninit() }; INLINE_SEGMENTS],
            used: 0,
        }
    }
}

/// A list of segments while it grows.
pub(super) enum List<'s> {
    Inline(&'s mut InlineSegments),
    Heap(KVec<Segment>),
}

impl<'s> List<'s> {
    /// An empty list in `room`, whose earlier contents are dropped.
    pub(super) fn inline(room: &'s mut InlineSegments) -> Self {
        // INVARIANT: No entry is used.
        room.used = 0;
        Self::Inline(room)
    }

    pub(super) fn filled(&self) -> &[Segment] {
        match self {
            // SAFETY: By the invariant of `InlineSegments` these are initialised.
            Self::Inline(list) => unsafe {
                core::slice::from_raw_parts(list.entries.as_ptr().cast(), list.used)
            },
            Self::Heap(list) => list,
        }
    }

    pub(super) fn filled_mut(&mut self) -> &mut [Segment] {
        match self {
            // SAFETY: By the invariant of `InlineSegments` these are initialised.
            Self::Inline(list) => unsafe {
                core::slice::from_raw_parts_mut(list.entries.as_mut_ptr().cast(), list.used)
            },
            Self::Heap(list) => list,
        }
    }

    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::Inline(_) => INLINE_SEGMENTS,
            Self::Heap(list) => list.capacity(),
        }
    }

    /// Appends a segment; the list must have room for it.
    pub(super) fn push(&mut self, segment: Segment) {
        match self {
            Self::Inline(list) => {
                list.entries[list.used].write(segment);
                // INVARIANT: The entry was just written.
                list.used += 1;
            }
            Self::Heap(list) => {
                // The caller has ensured that there is room.
                let _ = list.push_within_capacity(segment);
            }
        }
    }

    /// Keeps the first `count` segments.
    pub(super) fn truncate(&mut self, count: usize) {
        match self {
            Self::Inline(list) => list.used = list.used.min(count),
            Self::Heap(list) => list.truncate(count),
        }
    }

    /// Takes the list, and copies it to the heap if it is on the stack; [`Room`] can keep the
    /// result. Any context.
    pub(super) fn take_heap(&mut self) -> Result<KVec<Segment>> {
        match self {
            Self::Heap(list) => Ok(core::mem::take(list)),
            Self::Inline(_) => {
                let mut list = KVec::with_capacity(INLINE_SEGMENTS, GFP_NOWAIT)?;
                list.extend_from_slice(self.filled(), GFP_NOWAIT)?;
                Ok(list)
            }
        }
    }

    /// Grows the list to `count` segments, if there is memory for that.
    pub(super) fn grow(&mut self, count: usize) {
        if self.capacity() >= count {
            return;
        }
        let Ok(mut longer) = KVec::with_capacity(count, GFP_KERNEL) else {
            return;
        };
        for &segment in self.filled() {
            // `longer` has capacity for more than these.
            let _ = longer.push_within_capacity(segment);
        }
        *self = Self::Heap(longer);
    }
}

/// The end of the first `pages` pages of the list: the index of the segment with the next page, and
/// the number of bytes of that segment before it. `None` if one side has no pages.
pub(super) fn split_at(list: &[Segment], pages: usize) -> Option<(usize, usize)> {
    let mut left = pages;
    if left == 0 {
        return None;
    }
    for (index, segment) in list.iter().enumerate() {
        let here = pages_of(segment);
        if left < here {
            let kept = match left {
                0 => 0,
                left => left * PAGE_SIZE - segment.offset as usize,
            };
            return Some((index, kept));
        }
        left -= here;
    }
    None
}

/// Whether memory that begins `offset` bytes into the page at `phys` continues the last segment, at
/// its joinable end.
pub(super) fn joins(end: Option<u64>, phys: u64, offset: usize) -> bool {
    offset == 0 && end == Some(phys)
}

/// Address behind `end` bytes of the page at `phys`, at which the next page may join the segment.
/// Only whole pages join, so that each pin stays countable.
pub(super) fn joinable_end(phys: u64, end: usize) -> Option<u64> {
    if end == PAGE_SIZE {
        phys.checked_add(end as u64)
    } else {
        None
    }
}

/// The first page of a filled entry.
pub(super) fn page_of(segment: &Segment) -> *mut bindings::page {
    (segment.page_link & !SG_END) as *mut bindings::page
}

/// The number of pages of a filled entry.
pub(super) fn pages_of(segment: &Segment) -> usize {
    (segment.offset as usize + segment.length as usize).div_ceil(PAGE_SIZE)
}

#[kernel::macros::kunit_tests(ringbar_segments)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    #[test]
    fn only_the_page_behind_the_last_joins() {
        let end = joinable_end(5 * PAGE, PAGE_SIZE);
        assert!(joins(end, 6 * PAGE, 0));
        assert!(!joins(end, 5 * PAGE, 0));
        assert!(!joins(end, 7 * PAGE, 0));
        assert!(!joins(end, 4 * PAGE, 0));
        assert!(!joins(end, 6 * PAGE, 1));
        assert!(!joins(None, 0, 0));
    }

    #[test]
    fn nothing_joins_a_page_that_is_not_full() {
        assert_eq!(joinable_end(5 * PAGE, PAGE_SIZE - 1), None);
        assert_eq!(joinable_end(5 * PAGE, 1), None);
    }

    #[test]
    fn the_end_of_the_address_space_joins_nothing() {
        assert_eq!(joinable_end(0u64.wrapping_sub(PAGE), PAGE_SIZE), None);
    }

    fn segment(offset: usize, length: usize) -> Segment {
        Segment {
            // CAST: Small numbers.
            offset: offset as u32,
            length: length as u32,
            ..Segment::default()
        }
    }

    #[test]
    fn dr10_a_list_is_split_between_two_pages() {
        // Two pages, a part of one page, three pages of which the first in part.
        let list = [
            segment(0, 2 * PAGE_SIZE),
            segment(10, 20),
            segment(100, 3 * PAGE_SIZE - 100),
        ];
        assert_eq!(split_at(&list, 0), None);
        assert_eq!(split_at(&list, 1), Some((0, PAGE_SIZE)));
        assert_eq!(split_at(&list, 2), Some((1, 0)));
        assert_eq!(split_at(&list, 3), Some((2, 0)));
        assert_eq!(split_at(&list, 4), Some((2, PAGE_SIZE - 100)));
        assert_eq!(split_at(&list, 5), Some((2, 2 * PAGE_SIZE - 100)));
        assert_eq!(split_at(&list, 6), None);
    }

    #[test]
    fn a_segment_counts_the_pages_that_it_touches() {
        let pages = |offset, length| {
            pages_of(&Segment {
                offset,
                length,
                ..Segment::default()
            })
        };
        assert_eq!(pages(0, 1), 1);
        assert_eq!(pages(0, PAGE_SIZE as u32), 1);
        assert_eq!(pages(1, PAGE_SIZE as u32), 2);
        assert_eq!(pages(PAGE_SIZE as u32 - 1, 2), 2);
        assert_eq!(pages(100, 512 * PAGE_SIZE as u32), 513);
    }
}
