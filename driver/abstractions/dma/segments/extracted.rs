// SPDX-License-Identifier: GPL-2.0

//! Pages that no device knows yet.

use super::{
    folios::{
        unpin,
        unreference, //
    },
    list::{
        joinable_end,
        joins,
        page_of,
        pages_of,
        split_at,
        InlineSegments,
        List,
        Segment,
        SegmentLimits, //
    },
    ownership::Ownership, //
};
use crate::abstractions::helpers::{
    ringbar_folio_get,
    ringbar_page_to_phys,
    ringbar_pages_to_folio_end, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    dma::DataDirection,
    page::PAGE_SIZE,
    prelude::*, //
};

/// If there is room for fewer pages than this, a longer list is allocated, so that the pages are
/// not extracted a few at a time.
const LITTLE_ROOM: usize = 8;

/// Pages that were extracted from an iterator, and that no device knows yet. Dropping this releases
/// them.
///
/// # Invariants
///
/// Each page of a segment in `list` has one pin of ours, if `O` says so; otherwise each folio of a
/// segment has one reference of ours, once [`PageSource::extract`] has returned. The pages of a
/// segment are contiguous. The segments have `bytes` bytes together.
///
/// This folder ensures the invariants: no code outside of it can create or change such a value.
///
/// [`PageSource::extract`]: super::PageSource::extract
pub(crate) struct Extracted<'s, O: Ownership> {
    pub(super) list: List<'s>,
    bytes: usize,
    pub(super) direction: DataDirection,
    _pages: PhantomData<O>,
}

impl<'s, O: Ownership> Extracted<'s, O> {
    /// An empty list. Its segments go to `room`, and to the heap if `room` is too small or `None`.
    /// `ENOMEM` without memory. May sleep.
    #[inline(always)]
    pub(super) fn new(
        room: Option<&'s mut InlineSegments>,
        direction: DataDirection,
        limits: SegmentLimits,
    ) -> Result<Self> {
        let list = match room {
            Some(room) => List::inline(room),
            None => List::Heap(KVec::with_capacity(limits.count, GFP_KERNEL)?),
        };
        // INVARIANT: The list is empty.
        Ok(Self {
            list,
            bytes: 0,
            direction,
            _pages: PhantomData,
        })
    }
}

impl<O: Ownership> Extracted<'_, O> {
    /// Number of bytes in all pages, at least one.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of segments for which there is room, after growing the list for `left` more bytes if
    /// that helps.
    pub(super) fn room_for(&mut self, left: usize, limits: SegmentLimits) -> usize {
        let used = self.list.filled().len();
        let wanted = left.div_ceil(PAGE_SIZE).min(LITTLE_ROOM);
        if self.list.capacity() - used < wanted {
            self.list.grow(limits.count);
        }
        self.list.capacity().min(limits.count).saturating_sub(used)
    }

    /// Appends a part of a page, to the last segment if the two are contiguous.
    ///
    /// # Safety
    ///
    /// - The page must have been extracted from an iterator that pins if `O` says so; this call
    ///   takes over the pin.
    /// - `end` must be `None` at the first call for `self`, and must not be changed between calls.
    /// - `length` must be at least 1, and `offset + length` at most the size of a page.
    /// - The list must have room, as of [`Self::room_for`] with the same `limits`.
    #[inline(always)]
    pub(super) unsafe fn append(
        &mut self,
        page: *mut bindings::page,
        offset: usize,
        length: usize,
        end: &mut Option<u64>,
        limits: SegmentLimits,
    ) {
        // SAFETY: By the requirement the page is valid.
        let phys = unsafe { ringbar_page_to_phys(page) };
        let joins = joins(*end, phys, offset);
        *end = joinable_end(phys, offset + length);
        // INVARIANT: From here on the page is part of a segment; if it joins one, it begins at the
        // end of that segment.
        self.bytes += length;
        if joins {
            if let Some(last) = self.list.filled_mut().last_mut() {
                if last.length as usize + length <= limits.bytes {
                    // CAST: At most a page.
                    last.length += length as c_uint;
                    return;
                }
            }
        }
        // By the requirement the list has room.
        self.list.push(Segment {
            page_link: page as c_ulong,
            // CAST: Offset and length are at most a page.
            offset: offset as c_uint,
            length: length as c_uint,
            ..Segment::default()
        });
    }

    /// Splits off the second half of the pages. `None` if there is only one page, or no memory for
    /// the list. Sleeps.
    pub(crate) fn split_off_half(&mut self) -> Option<Extracted<'static, O>> {
        let list = self.list.filled();
        let pages: usize = list.iter().map(pages_of).sum();
        let (index, kept) = split_at(list, pages / 2)?;
        let mut tail = KVec::with_capacity(list.len() - index, GFP_KERNEL).ok()?;
        for (n, &segment) in list[index..].iter().enumerate() {
            let mut segment = segment;
            if n == 0 && kept > 0 {
                let skipped = (segment.offset as usize + kept) / PAGE_SIZE;
                // SAFETY: The page, and the one before, still belong to the segment, whose pages
                // are contiguous, and which has their pins or references.
                let page = unsafe {
                    let page = page_of(&segment).add(skipped);
                    if !O::PINNED && ringbar_pages_to_folio_end(page.sub(1)) > 1 {
                        // A folio that is in both halves needs a second reference.
                        ringbar_folio_get(page);
                    }
                    page
                };
                segment.page_link = page as c_ulong;
                segment.offset = 0;
                // CAST: Less than the length, as `split_at` says.
                segment.length -= kept as c_uint;
            }
            // `tail` has capacity for each of these.
            let _ = tail.push_within_capacity(segment);
        }
        let bytes = tail.iter().map(|segment| segment.length as usize).sum();

        // INVARIANT: Each page, with its pin, is in one of the two lists; a folio that is in both
        // has a reference for each.
        if kept > 0 {
            if let Some(last) = self.list.filled_mut().get_mut(index) {
                // CAST: Less than the length, as above.
                last.length = kept as c_uint;
            }
            self.list.truncate(index + 1);
        } else {
            self.list.truncate(index);
        }
        self.bytes -= bytes;
        Some(Extracted {
            list: List::Heap(tail),
            bytes,
            direction: self.direction,
            _pages: PhantomData,
        })
    }
}

impl<O: Ownership> Drop for Extracted<'_, O> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pins or references are ours, and are not used after
        // this.
        unsafe {
            if O::PINNED {
                unpin(self.list.filled(), false);
            } else {
                unreference(self.list.filled());
            }
        }
    }
}
