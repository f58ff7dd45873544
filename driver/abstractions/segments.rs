// SPDX-License-Identifier: GPL-2.0

//! The memory of one request: pages of the caller, merged into a scatterlist and
//! mapped for DMA.
//!
//! ```text
//!  PageSource --extract--> Extracted --map--> Mapped --unmap--> Pages --release--> (gone)
//!                              |
//!                            drop: the pages go back
//! ```
//!
//! Each state owns its pages: [`Extracted`] and [`Pages`] give them back when they are
//! dropped, [`Mapped`] has neither that nor any other way to get at the pages, because
//! the device may still use them.
//!
//! The pages of user memory are pinned, and stay whatever becomes of the caller
//! ([`Owned`]). Those of the kernel (a pipe's in `splice`, io_uring's registered buffers)
//! are only lent for as long as the call lasts ([`Borrowed`]), by
//! `Documentation/core-api/pin_user_pages.rst` and `iov_iter_extract_will_pin`. Nobody
//! may return from such a call before the device is done with them.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/scatterlist.h`](srctree/include/linux/scatterlist.h)

use super::{
    dma::DmaRange,
    helpers::{
        ringbar_get_page,
        ringbar_page_folio_dirty,
        ringbar_page_to_phys,
        ringbar_pages_to_folio_end, //
    },
    iov::IovIter,
    pci::as_raw_device,
    wait::Waiter, //
};
use core::{
    convert::Infallible,
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::NonNull, //
};
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

/// Segments that a call has room for without an allocation.
pub(crate) const INLINE_SEGMENTS: usize = 32;

/// A longer list is allocated once there is room for fewer pages than this, so that
/// pages are not taken a few at a time.
const LITTLE_ROOM: usize = 8;

/// Marks the last entry of a scatterlist.
const SG_END: c_ulong = bindings::SG_END as c_ulong;

/// Contiguous memory of at least one byte, beginning in the page `page_link`
/// points to.
type Segment = bindings::scatterlist;

mod sealed {
    pub(crate) trait Sealed {}
}

/// Who keeps the pages of a request.
pub(crate) trait Ownership: sealed::Sealed {
    /// Why somebody left a request alone that the device still works on.
    type Left: Into<Error>;

    /// Whether each page bears a pin of ours.
    const PINNED: bool;

    /// Waits for the end of a request with such pages. Sleeps.
    ///
    /// An error is leave to return to the caller before the request has ended.
    fn wait(waiter: &Waiter) -> Result<(), Self::Left>;
}

/// The pages are pinned: they stay until they are given back.
pub(crate) struct Owned;

/// The pages belong to the caller, and are his again once the call has returned or its
/// control block was completed.
pub(crate) struct Borrowed;

impl sealed::Sealed for Owned {}
impl sealed::Sealed for Borrowed {}

impl Ownership for Owned {
    type Left = Error;

    const PINNED: bool = true;

    /// Ends early, with `EINTR`, where the caller is killed.
    fn wait(waiter: &Waiter) -> Result {
        waiter.wait_killable()
    }
}

impl Ownership for Borrowed {
    type Left = Infallible;

    const PINNED: bool = false;

    fn wait(waiter: &Waiter) -> Result<(), Infallible> {
        waiter.wait();
        Ok(())
    }
}

/// What the data of one request may be.
#[derive(Clone, Copy)]
pub(crate) struct SegmentLimits {
    total: usize,
    count: usize,
    bytes: usize,
}

impl SegmentLimits {
    /// At most `total` bytes, in at most `count` segments of at most `bytes` each; at least
    /// one segment with room for a page.
    pub(crate) fn new(total: usize, count: usize, bytes: usize) -> Self {
        // A length has 32 bits.
        const MAX: usize = (u32::MAX as usize / PAGE_SIZE) * PAGE_SIZE;
        Self {
            total: total.max(1),
            count: count.max(1),
            bytes: bytes.clamp(PAGE_SIZE, MAX),
        }
    }

    /// Most bytes of all segments together.
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
    /// Nothing in it. The entries are not initialised: most calls need one of them.
    #[inline]
    pub(crate) fn new() -> Self {
        // INVARIANT: None are used.
        Self {
            entries: [const { MaybeUninit::uninit() }; INLINE_SEGMENTS],
            used: 0,
        }
    }
}

/// A list of segments while it grows.
enum List<'s> {
    Inline(&'s mut InlineSegments),
    Heap(KVec<Segment>),
}

impl List<'_> {
    fn filled(&self) -> &[Segment] {
        match self {
            // SAFETY: By the invariant of `InlineSegments` these are initialised.
            Self::Inline(list) => unsafe {
                core::slice::from_raw_parts(list.entries.as_ptr().cast(), list.used)
            },
            Self::Heap(list) => list,
        }
    }

    fn filled_mut(&mut self) -> &mut [Segment] {
        match self {
            // SAFETY: By the invariant of `InlineSegments` these are initialised.
            Self::Inline(list) => unsafe {
                core::slice::from_raw_parts_mut(list.entries.as_mut_ptr().cast(), list.used)
            },
            Self::Heap(list) => list,
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Inline(_) => INLINE_SEGMENTS,
            Self::Heap(list) => list.capacity(),
        }
    }

    /// Appends a segment; the list must have room for it.
    fn push(&mut self, segment: Segment) {
        match self {
            Self::Inline(list) => {
                list.entries[list.used].write(segment);
                // INVARIANT: Just written.
                list.used += 1;
            }
            Self::Heap(list) => {
                // The caller has asked for the room.
                let _ = list.push_within_capacity(segment);
            }
        }
    }

    /// Keeps the first `count` segments.
    fn truncate(&mut self, count: usize) {
        match self {
            Self::Inline(list) => list.used = list.used.min(count),
            Self::Heap(list) => list.truncate(count),
        }
    }

    /// Takes the list, which is copied to the heap where it is not there yet. Any
    /// context.
    fn take_heap(&mut self) -> Result<KVec<Segment>> {
        match self {
            Self::Heap(list) => Ok(core::mem::take(list)),
            Self::Inline(_) => {
                let mut list = KVec::new();
                list.extend_from_slice(self.filled(), GFP_NOWAIT)?;
                Ok(list)
            }
        }
    }

    /// Has room for `count` segments, if there is memory for that.
    fn grow(&mut self, count: usize) {
        if self.capacity() >= count {
            return;
        }
        let Ok(mut longer) = KVec::with_capacity(count, GFP_KERNEL) else {
            return;
        };
        for &segment in self.filled() {
            // There is room for more than these.
            let _ = longer.push_within_capacity(segment);
        }
        *self = Self::Heap(longer);
    }
}

/// The pages that an iterator has to offer.
///
/// # Invariants
///
/// - The iterator pins its pages exactly if `O` does.
/// - It has moved on by `taken` bytes since this was made.
pub(crate) struct PageSource<'i, 'c, O: Ownership> {
    iter: &'i mut IovIter<'c>,
    taken: usize,
    _pages: PhantomData<O>,
}

impl<'i, 'c, O: Ownership> PageSource<'i, 'c, O> {
    /// # Safety
    ///
    /// `iov_iter_extract_will_pin` must say of `iter` what `O` says.
    pub(super) unsafe fn new(iter: &'i mut IovIter<'c>) -> Self {
        // INVARIANT: By the requirement; nothing was taken.
        Self {
            iter,
            taken: 0,
            _pages: PhantomData,
        }
    }

    /// Takes pages from the iterator for a request, up to `wanted` bytes or as many as
    /// `limits` allow. They go to `room`, and to the heap where that is too small or not
    /// given. Sleeps: pinning may fault pages in, which may take as long as somebody
    /// else likes. So whoever calls this must hold nothing that others need.
    ///
    /// The pages are marked dirty where the device is going to write to them.
    ///
    /// `EFAULT` when not a single byte could be taken, `ENOMEM` without room; when some
    /// could, the error shows at the next call.
    pub(crate) fn extract<'s>(
        &mut self,
        room: Option<&'s mut InlineSegments>,
        wanted: usize,
        limits: SegmentLimits,
    ) -> Result<Extracted<'s, O>> {
        let limit = wanted.min(limits.total);
        let list = match room {
            Some(room) => {
                room.used = 0;
                List::Inline(room)
            }
            None => List::Heap(KVec::with_capacity(limits.count, GFP_KERNEL)?),
        };
        // INVARIANT: Nothing is in it.
        let mut extracted = Extracted {
            list,
            bytes: 0,
            direction: self.iter.direction(),
            _pages: PhantomData,
        };
        let mut end = None;
        while extracted.bytes < limit && self.iter.len() > 0 {
            let mut left = limit - extracted.bytes;
            if limit < wanted && end.is_some() {
                // The rest of a page that was cut here would be pinned once more.
                left -= left % PAGE_SIZE;
            }
            let room = extracted.room_for(left, limits);
            if room == 0 || left == 0 {
                break;
            }
            match self.extract_batch(&mut extracted, &mut end, left, room, limits) {
                Ok(()) => {}
                Err(error) if extracted.bytes == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if O::PINNED && extracted.direction.is_from_device() {
            // SAFETY: By the type invariant these pages are pinned.
            unsafe { mark_dirty(extracted.list.filled()) };
        }
        Ok(extracted)
    }

    /// Moves the iterator back to where it was. Who has pages of it, has them still.
    pub(crate) fn rewind(&mut self) {
        // SAFETY: The iterator is valid, and by the type invariant this undoes what it did.
        unsafe { bindings::iov_iter_revert(self.iter.as_raw(), self.taken) };
        // INVARIANT: It is where it was.
        self.taken = 0;
    }

    /// Takes up to [`BATCH`] pages, at most `limit` bytes and `room` segments.
    fn extract_batch(
        &mut self,
        extracted: &mut Extracted<'_, O>,
        end: &mut Option<u64>,
        limit: usize,
        room: usize,
        limits: SegmentLimits,
    ) -> Result {
        // Not initialised: most calls need one of them.
        let mut pages = [const { MaybeUninit::<*mut bindings::page>::uninit() }; BATCH];
        let mut array = pages.as_mut_ptr().cast();
        let mut offset = 0;
        // SAFETY: The iterator is valid, `array` has room for that many pages.
        let bytes = unsafe {
            bindings::iov_iter_extract_pages(
                self.iter.as_raw(),
                &mut array,
                limit,
                // Each page may need an entry of its own. CAST: At most `BATCH`.
                BATCH.min(room) as c_uint,
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
        // INVARIANT: That is how far the iterator has moved on.
        self.taken += bytes;

        let mut left = bytes;
        for page in &pages[..(offset + bytes).div_ceil(PAGE_SIZE).min(BATCH)] {
            // SAFETY: The bytes from `offset` in the first page on were extracted, so as many
            // pages as they touch were stored.
            let page = unsafe { page.assume_init() };
            let length = left.min(PAGE_SIZE - offset);
            extracted.append(page, offset, length, end, limits);
            left -= length;
            offset = 0;
        }
        Ok(())
    }
}

/// Whether the device writes.
trait Writes {
    fn is_from_device(&self) -> bool;
}

impl Writes for DataDirection {
    #[inline]
    fn is_from_device(&self) -> bool {
        matches!(self, Self::FromDevice)
    }
}

/// Pages taken from an iterator, which no device knows of yet. Dropped, they go back.
///
/// # Invariants
///
/// Each page of a segment in `list` bears one pin of ours, if `O` says so; the pages of a
/// segment are contiguous. The segments have `bytes` bytes together.
pub(crate) struct Extracted<'s, O: Ownership> {
    list: List<'s>,
    bytes: usize,
    direction: DataDirection,
    _pages: PhantomData<O>,
}

impl<O: Ownership> Extracted<'_, O> {
    /// Bytes in all pages, at least one.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many segments there is room for, after growing for `left` more bytes where
    /// that helps.
    fn room_for(&mut self, left: usize, limits: SegmentLimits) -> usize {
        let used = self.list.filled().len();
        let wanted = left.div_ceil(PAGE_SIZE).min(LITTLE_ROOM);
        if self.list.capacity() - used < wanted {
            self.list.grow(limits.count);
        }
        self.list.capacity().min(limits.count).saturating_sub(used)
    }

    /// Adds a piece of a page, to the last segment where the two are contiguous.
    fn append(
        &mut self,
        page: *mut bindings::page,
        offset: usize,
        length: usize,
        end: &mut Option<u64>,
        limits: SegmentLimits,
    ) {
        // SAFETY: The page was just extracted.
        let phys = unsafe { ringbar_page_to_phys(page) };
        let joins = joins(*end, phys, offset);
        *end = joinable_end(phys, offset + length);
        // INVARIANT: The page is part of a segment from here on.
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
        // No more pages were asked for than there is room for.
        self.list.push(Segment {
            page_link: page as c_ulong,
            // CAST: Offset and length are at most a page.
            offset: offset as c_uint,
            length: length as c_uint,
            ..Segment::default()
        });
    }

    /// Takes the second half of the pages away. `None` where there is only one page, or
    /// no memory for the list. Sleeps.
    pub(crate) fn split_off_half(&mut self) -> Option<Extracted<'static, O>> {
        let list = self.list.filled();
        let pages: usize = list.iter().map(pages_of).sum();
        let (index, kept) = split_at(list, pages / 2)?;
        let mut tail = KVec::with_capacity(list.len() - index, GFP_KERNEL).ok()?;
        for (n, &segment) in list[index..].iter().enumerate() {
            let mut segment = segment;
            if n == 0 && kept > 0 {
                let skipped = (segment.offset as usize + kept) / PAGE_SIZE;
                // SAFETY: The page still belongs to the segment, whose pages are contiguous.
                segment.page_link = unsafe { page_of(&segment).add(skipped) } as c_ulong;
                segment.offset = 0;
                // CAST: Below the length, as `split_at` says.
                segment.length -= kept as c_uint;
            }
            // There is room for each of these.
            let _ = tail.push_within_capacity(segment);
        }
        let bytes = tail.iter().map(|segment| segment.length as usize).sum();

        // INVARIANT: Each page, with its pin, is in one of the two lists.
        if kept > 0 {
            if let Some(last) = self.list.filled_mut().get_mut(index) {
                // CAST: Below the length, as above.
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

impl<'s, O: Ownership> Extracted<'s, O> {
    /// Maps the pages for DMA by `device`. Short lists move to `room`. Any context.
    ///
    /// `EAGAIN` where the DMA layer has no room at the moment (bounce buffers, IOMMU
    /// addresses), `ENOMEM` where `room` is lent already and the heap has none; other errors
    /// stay. The pages come back with any of them.
    pub(crate) fn map(
        self,
        device: &pci::Device<Bound>,
        room: &mut Room,
    ) -> Result<Mapped, (Error, Self)> {
        let mut this = core::mem::ManuallyDrop::new(self);
        let fits = this.list.filled().len() <= room.0.capacity();
        let mut list = if fits {
            let mut list = core::mem::take(&mut room.0);
            for &segment in this.list.filled() {
                // It fits.
                let _ = list.push_within_capacity(segment);
            }
            list
        } else {
            match this.list.take_heap() {
                Ok(list) => list,
                Err(error) => return Err((error, core::mem::ManuallyDrop::into_inner(this))),
            }
        };
        if let Some(last) = list.last_mut() {
            last.page_link |= SG_END;
        }
        let mut table = bindings::sg_table {
            sgl: list.as_mut_ptr(),
            nents: 0,
            // CAST: Far below `c_uint::MAX`.
            orig_nents: list.len() as c_uint,
        };
        let device = as_raw_device(device);
        // SAFETY: The device is bound, the entries form a scatterlist with an end mark.
        let ret = unsafe {
            bindings::dma_map_sgtable(
                device,
                &mut table,
                this.direction.into(),
                bindings::DMA_ATTR_NO_WARN as c_ulong,
            )
        };
        if ret < 0 {
            if fits {
                list.clear();
                room.0 = list;
            } else {
                this.list = List::Heap(list);
            }
            let error = Error::from_errno(ret);
            // `dma_map_sgtable` (kernel/dma/mapping.c): for want of room it is `ENOMEM`, or `EIO`
            // where the failing layer does not say (`dma_direct_map_sg`).
            let error = if error == ENOMEM || error == EIO {
                EAGAIN
            } else {
                error
            };
            return Err((error, core::mem::ManuallyDrop::into_inner(this)));
        }
        let direction = this.direction;
        if fits {
            if let List::Heap(list) = &mut this.list {
                drop(core::mem::take(list));
            }
        }
        // INVARIANT: Mapped. `this`, whose pins go over, is not dropped, and its list has been
        // moved or freed.
        Ok(Mapped {
            pages: core::mem::ManuallyDrop::new(Pages {
                list,
                pinned: O::PINNED,
                direction,
            }),
            device: NonNull::new(device),
            ranges: table.nents as usize,
        })
    }
}

impl<O: Ownership> Drop for Extracted<'_, O> {
    fn drop(&mut self) {
        if O::PINNED {
            // SAFETY: By the type invariant the pins are ours, and this is the end of them.
            unsafe { unpin(self.list.filled(), false) };
        }
    }
}

/// An empty list for segments, which belongs to a slot.
pub(crate) struct Room(KVec<Segment>);

impl Room {
    /// Room for as many segments as a call has without an allocation. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(KVec::with_capacity(INLINE_SEGMENTS, GFP_KERNEL)?))
    }

    /// No room at all, for requests without data.
    pub(crate) fn none() -> Self {
        Self(KVec::new())
    }

    /// Takes back the list that was lent.
    fn put_back(&mut self, mut list: KVec<Segment>) {
        // One from the heap is freed; the other was never lent then.
        if self.0.capacity() == 0 {
            list.clear();
            self.0 = list;
        }
    }
}

/// Pages that a device may use.
///
/// Dropped, the pages stay mapped and pinned for good, with a warning: nobody can know
/// whether the device still uses them.
///
/// # Invariants
///
/// The list in `pages` is mapped for `device`, in its direction; the first `ranges`
/// entries carry the bus addresses that came out.
pub(crate) struct Mapped {
    pages: core::mem::ManuallyDrop<Pages>,
    device: Option<NonNull<bindings::device>>,
    ranges: usize,
}

// SAFETY: Pages may be unpinned and mappings taken down by any thread.
unsafe impl Send for Mapped {}

impl Mapped {
    /// What is mapped, as the device sees it.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = DmaRange<'_>> + '_ {
        let writable = self.pages.direction.is_from_device();
        self.pages
            .list
            .iter()
            .take(self.ranges)
            .map(move |segment| {
                let segment = core::ptr::from_ref(segment).cast_mut();
                // SAFETY: A mapped entry; the two functions only read it. It stays mapped as long as
                // `self` lives.
                unsafe {
                    DmaRange::new(
                        bindings::sg_dma_address(segment),
                        bindings::sg_dma_len(segment),
                        writable,
                    )
                }
            })
    }

    /// Leaves the pages, mapped, to a device that may use them for ever. Any context.
    ///
    /// Those that are pinned stay so. The others get a reference each: their owner gives
    /// them up when the request has ended, and nobody else may have them then.
    pub(crate) fn leak(self) {
        let this = core::mem::ManuallyDrop::new(self);
        if this.pages.pinned {
            return;
        }
        for segment in &*this.pages.list {
            for n in 0..pages_of(segment) {
                // SAFETY: The pages of a segment are contiguous, and alive: the request, for which
                // they were lent, has not ended.
                unsafe { ringbar_get_page(page_of(segment).add(n)) };
            }
        }
    }

    /// Takes the DMA mapping down, after which the CPU sees what the device wrote. Any
    /// context. The device must not use the pages any more: it has said so, was reset,
    /// or was never told of them.
    ///
    /// `device` shows that the device is still bound. With another one than the pages
    /// were mapped for, they stay so for good, with a warning.
    pub(crate) fn unmap(self, device: &pci::Device<Bound>) -> Pages {
        let mut this = core::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not used any more.
        let mut pages = unsafe { core::mem::ManuallyDrop::take(&mut this.pages) };
        let device = as_raw_device(device);
        if kernel::warn_on!(this.device != NonNull::new(device)) {
            core::mem::forget(pages);
            return Pages {
                list: KVec::new(),
                pinned: false,
                direction: DataDirection::None,
            };
        }
        // SAFETY: The device is bound; this list was mapped for it, in this direction.
        unsafe {
            bindings::dma_unmap_sg_attrs(
                device,
                pages.list.as_mut_ptr(),
                // CAST: Far below `c_int::MAX`.
                pages.list.len() as c_int,
                pages.direction.into(),
                0,
            )
        };
        pages
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        kernel::warn_on!(true);
    }
}

/// Pages that a device has used. Dropped, they go back, which sleeps.
///
/// # Invariants
///
/// If `pinned`, each page of a segment in `list` bears one pin of ours; the pages of a
/// segment are contiguous.
pub(crate) struct Pages {
    list: KVec<Segment>,
    pinned: bool,
    direction: DataDirection,
}

// SAFETY: Pages may be unpinned by any thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Gives the pages back and the list to `room`, unless a page that the device wrote
    /// to was cleaned in the meantime and must be made dirty again, which sleeps. Any
    /// context.
    ///
    /// On an error [`Self::release`] is to be called from a context that may sleep.
    pub(crate) fn try_release(mut self, room: &mut Room) -> Result<(), Self> {
        if self.pinned {
            // SAFETY: By the type invariant these pages are pinned.
            if self.direction.is_from_device() && !unsafe { all_dirty(&self.list) } {
                return Err(self);
            }
            // SAFETY: By the type invariant the pins are ours, and `pinned` is cleared below.
            unsafe { unpin(&self.list, false) };
            // INVARIANT: No pin is left.
            self.pinned = false;
        }
        room.put_back(core::mem::take(&mut self.list));
        Ok(())
    }

    /// Gives the pages back, dirty where the device wrote to them, and the list to
    /// `room`. Sleeps.
    pub(crate) fn release(mut self, room: &mut Room) {
        self.unpin();
        room.put_back(core::mem::take(&mut self.list));
    }

    fn unpin(&mut self) {
        if self.pinned {
            // SAFETY: By the type invariant the pins are ours, and `pinned` is cleared below.
            unsafe { unpin(&self.list, self.direction.is_from_device()) };
            // INVARIANT: No pin is left.
            self.pinned = false;
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.unpin();
    }
}

/// Gives up a pin of each page, and marks it `dirty`, which sleeps.
///
/// # Safety
///
/// Each page of these segments must bear a pin that the caller gives away with this call;
/// the pages of a segment must be contiguous.
unsafe fn unpin(list: &[Segment], dirty: bool) {
    for segment in list {
        // SAFETY: By the requirement; the `struct page`s of contiguous pages are contiguous.
        unsafe {
            bindings::unpin_user_page_range_dirty_lock(
                page_of(segment),
                pages_of(segment) as c_ulong,
                dirty,
            )
        };
    }
}

/// Marks the folios dirty before the device writes to them, as long as that may sleep.
/// Mostly they stay so, and [`Pages::try_release`] has nothing to do.
///
/// # Safety
///
/// The pages of these segments must be pinned, those of one segment contiguous.
unsafe fn mark_dirty(list: &[Segment]) {
    for segment in list {
        let mark = |page| {
            // SAFETY: The page is pinned, by the requirement.
            unsafe {
                if !ringbar_page_folio_dirty(page) {
                    bindings::set_page_dirty_lock(page);
                }
            }
            true
        };
        // SAFETY: By the requirement.
        unsafe { for_each_folio(segment, mark) };
    }
}

/// Whether all folios are dirty.
///
/// # Safety
///
/// As of [`mark_dirty`].
unsafe fn all_dirty(list: &[Segment]) -> bool {
    list.iter().all(|segment| {
        // SAFETY: The page is pinned, by the requirement.
        let is_dirty = |page| unsafe { ringbar_page_folio_dirty(page) };
        // SAFETY: By the requirement.
        unsafe { for_each_folio(segment, is_dirty) }
    })
}

/// Where the first `pages` pages of the list end: the segment that the next one is in,
/// and how many bytes of it come before. `None` where there are no pages on one side.
fn split_at(list: &[Segment], pages: usize) -> Option<(usize, usize)> {
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
///
/// # Safety
///
/// The pages of the segment must be pinned and contiguous.
unsafe fn for_each_folio(
    segment: &Segment,
    mut f: impl FnMut(*mut bindings::page) -> bool,
) -> bool {
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
        // SAFETY: The page is pinned, by the requirement.
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
        // Two pages, one page in part, three pages of which the first in part.
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

    /// Calls `f` with the pages of a kernel buffer of `pages` pages, into which a device
    /// is to write, without its first `skipped` bytes.
    fn with_kernel_pages(
        pages: usize,
        skipped: usize,
        f: impl FnOnce(PageSource<'_, '_, Borrowed>, u64),
    ) -> Result {
        let mut buffer = KVec::<u8>::from_elem(0, (pages + 1) * PAGE_SIZE, GFP_KERNEL)?;
        let start = buffer.as_mut_ptr().align_offset(PAGE_SIZE) + skipped;
        let vec = bindings::kvec {
            iov_base: buffer[start..].as_mut_ptr().cast(),
            iov_len: pages * PAGE_SIZE - skipped,
        };
        let mut iter = bindings::iov_iter::default();
        // SAFETY: The iterator and what it points to live until the end of this function.
        let mut iter = unsafe {
            bindings::iov_iter_kvec(&mut iter, bindings::ITER_DEST, &vec, 1, vec.iov_len);
            IovIter::from_raw(NonNull::from(&mut iter))
        };
        match iter.pages() {
            super::super::iov::Pages::Kernel(source) => f(source, vec.iov_len as u64),
            super::super::iov::Pages::User(_) => return Err(EINVAL),
        }
        Ok(())
    }

    #[test]
    fn dr1_kernel_memory_is_only_lent() -> Result {
        with_kernel_pages(3, 100, |mut source, bytes| {
            let limits = SegmentLimits::new(usize::MAX, 8, usize::MAX);
            let pages = source.extract(None, usize::MAX, limits);
            assert!(pages.is_ok_and(|pages| {
                pages.bytes() as u64 == bytes
                    && pages.list.filled().len() == 1
                    && pages.direction.is_from_device()
            }));
            assert_eq!(source.iter.len(), 0);
            source.rewind();
            assert_eq!(source.iter.len() as u64, bytes);
        })
    }

    #[test]
    fn dr9_a_request_that_is_cut_ends_with_a_page() -> Result {
        with_kernel_pages(80, 100, |mut source, bytes| {
            // 50 pages, in other pages: 32 are taken at a time.
            let limits = SegmentLimits::new(50 * PAGE_SIZE, 8, usize::MAX);
            let first = source.extract(None, usize::MAX, limits);
            assert!(first.is_ok_and(|first| first.bytes() == 50 * PAGE_SIZE - 100));
            let rest = source.extract(None, usize::MAX, limits);
            assert!(rest.is_ok_and(|rest| rest.bytes() == 30 * PAGE_SIZE));
            source.rewind();
            // What is cut by the caller ends where that says.
            let mut room = InlineSegments::new();
            let whole = source.extract(Some(&mut room), bytes as usize - 5, {
                SegmentLimits::new(usize::MAX, 8, usize::MAX)
            });
            assert!(whole.is_ok_and(|whole| whole.bytes() as u64 == bytes - 5));
        })
    }

    #[test]
    fn a_list_that_is_full_moves_to_the_heap() -> Result {
        with_kernel_pages(40, 0, |mut source, bytes| {
            // A segment for each page.
            let limits = SegmentLimits::new(usize::MAX, 251, PAGE_SIZE);
            let mut room = InlineSegments::new();
            let pages = source.extract(Some(&mut room), usize::MAX, limits);
            assert!(pages.is_ok_and(|mut pages| {
                let whole = pages.bytes() as u64 == bytes && pages.list.filled().len() == 40;
                let half = pages.split_off_half();
                whole
                    && pages.list.filled().len() == 20
                    && pages.bytes() == 20 * PAGE_SIZE
                    && half.is_some_and(|half| half.bytes() == 20 * PAGE_SIZE)
            }));
        })
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
