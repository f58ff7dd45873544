// SPDX-License-Identifier: GPL-2.0

//! The memory of one request: pages of the caller, pinned where they are user
//! memory, merged into a scatterlist and mapped for DMA.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/scatterlist.h`](srctree/include/linux/scatterlist.h),
//! [`Documentation/core-api/pin_user_pages.rst`](srctree/Documentation/core-api/pin_user_pages.rst)

use super::{
    helpers::{
        ringbar_iov_iter_extract_will_pin,
        ringbar_page_folio_dirty,
        ringbar_page_to_phys,
        ringbar_pages_to_folio_end, //
    },
    iov::IovIter,
    pci::as_raw_device, //
};
use core::mem::MaybeUninit;
use kernel::{
    bindings,
    device::Bound,
    dma::DataDirection,
    page::PAGE_SIZE,
    pci,
    prelude::*, //
};

/// How many pages are taken from the iterator at a time. The array of their
/// pointers is on the stack.
const BATCH: usize = 32;

/// Marks the last entry of a scatterlist (`SG_END`).
const SG_END: c_ulong = 0x2;

/// Contiguous memory of at least one byte, beginning in the page `page_link`
/// points to.
type Segment = bindings::scatterlist;

/// The memory of one request.
///
/// Goes through `clear -> extract -> map -> unmap -> release`; each step says
/// in which context it may be called.
///
/// # Invariants
///
/// - The first `used` entries of `list` are filled and the last of them bears the
///   end mark.
/// - Each page of a filled entry bears one pin of ours exactly if `pinned`.
/// - `mapped` is the number of entries handed to `dma_map_sg`, 0 when unmapped;
///   `dma_segments` the number of bus address ranges that came out.
pub(crate) struct DataSegments {
    list: KVec<Segment>,
    used: usize,
    mapped: usize,
    dma_segments: usize,
    /// Where the next page must be to join the last entry, if one can.
    end: Option<u64>,
    pinned: bool,
    direction: DataDirection,
    max_segment_bytes: usize,
}

// SAFETY: Pages may be unpinned and mappings taken down by any thread.
unsafe impl Send for DataSegments {}

impl DataSegments {
    /// Room for `capacity` segments of at most `max_segment_bytes` each. May
    /// sleep.
    pub(crate) fn new(capacity: usize, max_segment_bytes: usize) -> Result<Self> {
        let mut list = KVec::with_capacity(capacity, GFP_KERNEL)?;
        for _ in 0..capacity {
            list.push(Segment::default(), GFP_KERNEL)?;
        }
        // INVARIANT: Nothing is used, nothing is mapped.
        Ok(Self {
            list,
            used: 0,
            mapped: 0,
            dma_segments: 0,
            end: None,
            pinned: false,
            direction: DataDirection::None,
            max_segment_bytes: max_segment_bytes.max(PAGE_SIZE),
        })
    }

    /// Takes memory from `iter`, until `limit` bytes are taken or the room is
    /// full, and returns how many bytes that were. Sleeps: pinning may fault pages
    /// in.
    ///
    /// `direction` tells what the device will do: `FromDevice` makes the pages
    /// dirty. `EFAULT` when not a single byte could be taken; when some could, the
    /// error shows at the next call.
    pub(crate) fn extract(
        &mut self,
        iter: &mut IovIter<'_>,
        direction: DataDirection,
        limit: usize,
    ) -> Result<usize> {
        debug_assert!(self.used == 0);
        // SAFETY: The iterator is valid.
        self.pinned = unsafe { ringbar_iov_iter_extract_will_pin(iter.as_raw()) };
        self.direction = direction;
        self.end = None;

        let mut taken = 0;
        while taken < limit && iter.len() > 0 && self.used < self.list.len() {
            match self.extract_batch(iter, limit - taken) {
                Ok(bytes) => taken += bytes,
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if let Some(last) = self.list[..self.used].last_mut() {
            last.page_link |= SG_END;
        }
        if self.pinned && matches!(direction, DataDirection::FromDevice) {
            self.mark_dirty();
        }
        Ok(taken)
    }

    /// Takes up to [`BATCH`] pages, at most `limit` bytes.
    fn extract_batch(&mut self, iter: &mut IovIter<'_>, limit: usize) -> Result<usize> {
        // Not initialised: most calls need one of them.
        let mut pages = [const { MaybeUninit::<*mut bindings::page>::uninit() }; BATCH];
        let mut array = pages.as_mut_ptr().cast();
        let mut offset = 0;
        // Each page may need an entry of its own.
        let room = BATCH.min(self.list.len() - self.used);
        // SAFETY: The iterator is valid, `array` has room for `room` pages.
        let bytes = unsafe {
            bindings::iov_iter_extract_pages(
                iter.as_raw(),
                &mut array,
                limit,
                // CAST: At most `BATCH`.
                room as c_uint,
                0,
                &mut offset,
            )
        };
        if bytes < 0 {
            // CAST: A negative errno.
            return Err(Error::from_errno(bytes as c_int));
        }
        if bytes == 0 {
            return Err(EFAULT);
        }
        // CAST: Positive.
        let bytes = bytes as usize;

        let mut left = bytes;
        for page in &pages[..(offset + bytes).div_ceil(PAGE_SIZE).min(BATCH)] {
            // SAFETY: The bytes from `offset` in the first page on were extracted, so as many
            // pages as they touch were stored.
            let page = unsafe { page.assume_init() };
            let length = left.min(PAGE_SIZE - offset);
            self.append(page, offset, length);
            left -= length;
            offset = 0;
        }
        Ok(bytes)
    }

    /// Adds a piece of a page, to the last segment where the two are contiguous.
    fn append(&mut self, page: *mut bindings::page, offset: usize, length: usize) {
        // SAFETY: The page was just extracted.
        let phys = unsafe { ringbar_page_to_phys(page) };
        let joins = joins(self.end, phys, offset);
        self.end = joinable_end(phys, offset + length);
        if joins {
            if let Some(last) = self.list[..self.used].last_mut() {
                let bytes = last.length as usize + length;
                if bytes <= self.max_segment_bytes {
                    // CAST: At most a page.
                    last.length += length as c_uint;
                    return;
                }
            }
        }
        // `extract_batch` asks for no more pages than there are entries left.
        if let Some(entry) = self.list.get_mut(self.used) {
            // CAST: Offset and length are at most a page.
            *entry = Segment {
                page_link: page as c_ulong,
                offset: offset as c_uint,
                length: length as c_uint,
                ..Segment::default()
            };
            // INVARIANT: The entry is filled; `extract` sets the end mark when it is done.
            self.used += 1;
        }
    }

    /// Marks the folios dirty before the device writes to them, as long as that
    /// may sleep. Mostly they stay so, and [`Self::try_release`] has nothing to
    /// do.
    fn mark_dirty(&self) {
        for segment in &self.list[..self.used] {
            for_each_folio(segment, |page| {
                // SAFETY: The page is pinned.
                unsafe {
                    if !ringbar_page_folio_dirty(page) {
                        bindings::set_page_dirty_lock(page);
                    }
                }
                true
            });
        }
    }

    /// Maps the segments for DMA. Any context.
    ///
    /// `EIO` where the DMA layer has no room (bounce buffers, IOMMU addresses).
    pub(crate) fn map(&mut self, device: &pci::Device<Bound>) -> Result {
        if self.used == 0 {
            return Ok(());
        }
        // SAFETY: The device is bound, the first `used` entries form a scatterlist.
        let count = unsafe {
            bindings::dma_map_sg_attrs(
                as_raw_device(device),
                self.list.as_mut_ptr(),
                // CAST: Far below `c_int::MAX`.
                self.used as c_int,
                self.direction.into(),
                0,
            )
        };
        if count == 0 {
            return Err(EIO);
        }
        // INVARIANT: Mapped.
        self.mapped = self.used;
        self.dma_segments = count as usize;
        Ok(())
    }

    /// The bus addresses and lengths of what is mapped.
    pub(crate) fn dma_ranges(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.list[..self.dma_segments].iter().map(|segment| {
            let segment = core::ptr::from_ref(segment).cast_mut();
            // SAFETY: A mapped entry; the two functions only read it.
            unsafe {
                (
                    bindings::sg_dma_address(segment),
                    bindings::sg_dma_len(segment),
                )
            }
        })
    }

    /// Takes the DMA mapping down, after which the CPU sees what the device wrote.
    /// Any context.
    pub(crate) fn unmap(&mut self, device: &pci::Device<Bound>) {
        if self.mapped == 0 {
            return;
        }
        // SAFETY: The device is bound; these entries were mapped, for this direction.
        unsafe {
            bindings::dma_unmap_sg_attrs(
                as_raw_device(device),
                self.list.as_mut_ptr(),
                // CAST: As in `map`.
                self.mapped as c_int,
                self.direction.into(),
                0,
            )
        };
        // INVARIANT: Unmapped.
        self.mapped = 0;
        self.dma_segments = 0;
    }

    /// Gives the pages back, unless a page that the device wrote to was cleaned in
    /// the meantime and must be made dirty again, which sleeps. Any context.
    ///
    /// Returns whether the pages were given back; if not, [`Self::release`] is to
    /// be called from a context that may sleep.
    pub(crate) fn try_release(&mut self) -> bool {
        if self.pinned && matches!(self.direction, DataDirection::FromDevice) {
            let all_dirty = self.list[..self.used].iter().all(|segment| {
                for_each_folio(segment, |page| {
                    // SAFETY: The page is pinned.
                    unsafe { ringbar_page_folio_dirty(page) }
                })
            });
            if !all_dirty {
                return false;
            }
        }
        self.unpin(false);
        true
    }

    /// Gives the pages back, dirty where the device wrote to them. Sleeps.
    pub(crate) fn release(&mut self) {
        self.unpin(matches!(self.direction, DataDirection::FromDevice));
    }

    fn unpin(&mut self, dirty: bool) {
        debug_assert!(self.mapped == 0);
        if self.pinned {
            for segment in &self.list[..self.used] {
                // SAFETY: By the type invariant each of these pages bears one pin of ours; the
                // pages of a segment are contiguous, so their `struct page`s are as well.
                unsafe {
                    bindings::unpin_user_page_range_dirty_lock(
                        page_of(segment),
                        pages_of(segment) as c_ulong,
                        dirty,
                    )
                };
            }
        }
        // INVARIANT: Nothing is used.
        self.used = 0;
        self.pinned = false;
    }
}

impl Drop for DataSegments {
    fn drop(&mut self) {
        // A request is unmapped and released before its slot is freed. Should one not be, leaking
        // the pages is the only safe thing to do.
        kernel::warn_on!(self.used != 0 || self.mapped != 0);
    }
}

/// Whether what begins `offset` bytes into the page at `phys` goes on where the last
/// segment has a joinable end.
fn joins(end: Option<u64>, phys: u64, offset: usize) -> bool {
    offset == 0 && end == Some(phys)
}

/// Address behind `end` bytes of the page at `phys`, where the next page may join
/// them. Only whole pages join, so that each pin stays countable.
fn joinable_end(phys: u64, end: usize) -> Option<u64> {
    if end == PAGE_SIZE {
        phys.checked_add(end as u64)
    } else {
        None
    }
}

/// The first page of a filled entry.
fn page_of(segment: &Segment) -> *mut bindings::page {
    (segment.page_link & !SG_END) as *mut bindings::page
}

/// The number of pages that a filled entry touches.
fn pages_of(segment: &Segment) -> usize {
    (segment.offset as usize + segment.length as usize).div_ceil(PAGE_SIZE)
}

/// Calls `f` with one page of each folio that the segment touches, until `f`
/// returns false. Returns whether it never did.
fn for_each_folio(segment: &Segment, mut f: impl FnMut(*mut bindings::page) -> bool) -> bool {
    let mut page = page_of(segment);
    let mut left = pages_of(segment);
    loop {
        if !f(page) {
            return false;
        }
        // Mostly so, and then the rest need not be asked.
        if left <= 1 {
            return true;
        }
        // SAFETY: The page is pinned.
        let step = (unsafe { ringbar_pages_to_folio_end(page) } as usize).max(1);
        if step >= left {
            return true;
        }
        left -= step;
        // SAFETY: The next page still belongs to the segment, whose pages are contiguous.
        page = unsafe { page.add(step) };
    }
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
