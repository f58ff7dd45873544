// SPDX-License-Identifier: GPL-2.0

//! The memory of one request: pages of the caller, merged into a scatterlist and
//! mapped for DMA.
//!
//! ```text
//!  PageSource --extract--> Extracted --map--> Mapped --unmap--> Pages --release--> (gone)
//!                              |                                          |
//!                            drop: the pages go back                 CleanedPages
//! ```
//!
//! Each state owns its pages: [`Extracted`] and [`Pages`] give them back when they are
//! dropped, [`Mapped`] has neither that nor any other way to get at the pages, because
//! the device may still use them.
//!
//! A page that the device wrote to may have been cleaned meanwhile, and must be made dirty
//! again before it goes back. That takes the lock of its folio, which a file system in user
//! space can hold for as long as it likes. So such pages leave the request, as
//! [`CleanedPages`], for where nothing is held that others need.
//!
//! The pages of user memory are pinned, and stay whatever becomes of the caller
//! ([`Owned`]). Those of the kernel (a pipe's in `splice`, io_uring's registered buffers)
//! are only lent for as long as the call lasts ([`Borrowed`]), by
//! `Documentation/core-api/pin_user_pages.rst` and `iov_iter_extract_will_pin`. Nobody
//! may return from such a call before the device is done with them: their owner would use
//! them for something else. A reference to each keeps them from being freed, so that whoever
//! does return early has wrong bytes, but no memory that belongs to somebody else.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/scatterlist.h`](srctree/include/linux/scatterlist.h)

use super::range::DmaRange;
use crate::abstractions::{
    fs::iov::IovIter,
    helpers::{
        ringbar_folio_get,
        ringbar_folio_put,
        ringbar_folio_try_get,
        ringbar_page_folio_dirty,
        ringbar_page_to_phys,
        ringbar_pages_to_folio_end, //
    },
    pci::device::as_raw_device,
    task::{
        wait::KernelCompletion,
        work::WorkQueue, //
    }, //
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
    impl_has_work,
    new_work,
    page::PAGE_SIZE,
    pci,
    prelude::*,
    workqueue::{
        Work,
        WorkItem, //
    }, //
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
    fn wait(waiter: &KernelCompletion) -> Result<(), Self::Left>;
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
    fn wait(waiter: &KernelCompletion) -> Result {
        waiter.wait_killable()
    }
}

impl Ownership for Borrowed {
    type Left = Infallible;

    const PINNED: bool = false;

    fn wait(waiter: &KernelCompletion) -> Result<(), Infallible> {
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

    /// Takes the list, which is copied to the heap where it is not there yet; one that
    /// [`Room`] can keep. Any context.
    fn take_heap(&mut self) -> Result<KVec<Segment>> {
        match self {
            Self::Heap(list) => Ok(core::mem::take(list)),
            Self::Inline(_) => {
                let mut list = KVec::with_capacity(INLINE_SEGMENTS, GFP_NOWAIT)?;
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
    pub(in crate::abstractions) unsafe fn new(iter: &'i mut IovIter<'c>) -> Self {
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
    /// could, the error shows at the next call. `EOPNOTSUPP` for memory of the kernel that
    /// has no references, such as that of `kmalloc`: nothing could keep it.
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
        if !O::PINNED {
            // SAFETY: The pages are there for as long as the call, to which they are lent; those of
            // a segment are contiguous.
            if let Err(error) = unsafe { reference(extracted.list.filled()) } {
                // Nothing is to be given back.
                extracted.list.truncate(0);
                return Err(error);
            }
        } else if extracted.direction.is_from_device() {
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
/// Each page of a segment in `list` bears one pin of ours, if `O` says so; otherwise each
/// folio of a segment bears one reference of ours, once [`PageSource::extract`] has
/// returned. The pages of a segment are contiguous. The segments have `bytes` bytes together.
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
                // SAFETY: The page, and the one before, still belong to the segment, whose pages are
                // contiguous, and which keeps them.
                let page = unsafe {
                    let page = page_of(&segment).add(skipped);
                    if !O::PINNED && ringbar_pages_to_folio_end(page.sub(1)) > 1 {
                        // A folio that is in both halves.
                        ringbar_folio_get(page);
                    }
                    page
                };
                segment.page_link = page as c_ulong;
                segment.offset = 0;
                // CAST: Below the length, as `split_at` says.
                segment.length -= kept as c_uint;
            }
            // There is room for each of these.
            let _ = tail.push_within_capacity(segment);
        }
        let bytes = tail.iter().map(|segment| segment.length as usize).sum();

        // INVARIANT: Each page, with its pin, is in one of the two lists; a folio that is in both
        // has a reference for each.
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
    /// addresses), or `room` is lent still and the heap has none; other errors stay. The
    /// pages come back with any of them.
    pub(crate) fn map(
        self,
        device: &pci::Device<Bound>,
        room: &mut Room,
    ) -> Result<Mapped, (Error, Self)> {
        let mut this = core::mem::ManuallyDrop::new(self);
        let hold = match room.take_hold::<O>(this.direction) {
            Ok(hold) => hold,
            Err(_) => return Err((EAGAIN, core::mem::ManuallyDrop::into_inner(this))),
        };
        let fits = this.list.filled().len() <= room.list.capacity();
        let mut list = if fits {
            let mut list = core::mem::take(&mut room.list);
            for &segment in this.list.filled() {
                // It fits.
                let _ = list.push_within_capacity(segment);
            }
            list
        } else {
            match this.list.take_heap() {
                Ok(list) => list,
                Err(_) => {
                    room.put_back_hold(hold);
                    return Err((EAGAIN, core::mem::ManuallyDrop::into_inner(this)));
                }
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
            room.put_back_hold(hold);
            if fits {
                list.clear();
                room.list = list;
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
        // INVARIANT: Mapped. `this`, whose pins or references go over, is not dropped, and its list
        // has been moved or freed.
        Ok(Mapped {
            pages: core::mem::ManuallyDrop::new(Pages {
                list,
                hold,
                direction,
            }),
            device: NonNull::new(device),
            ranges: table.nents as usize,
        })
    }
}

impl<O: Ownership> Drop for Extracted<'_, O> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pins or references are ours, and this is the end of
        // them.
        unsafe {
            if O::PINNED {
                unpin(self.list.filled(), false);
            } else {
                unreference(self.list.filled());
            }
        }
    }
}

/// An empty list for segments, and memory to make pages dirty later, which belong to a slot.
///
/// [`CleanedPages`] take both with them. The next request makes up for that.
pub(crate) struct Room {
    list: KVec<Segment>,
    redirty: Option<Pin<KBox<Redirty>>>,
}

impl Room {
    /// Room for as many segments as a call has without an allocation. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            list: KVec::with_capacity(INLINE_SEGMENTS, GFP_KERNEL)?,
            redirty: Some(Redirty::new(GFP_KERNEL)?),
        })
    }

    /// No room at all, for requests without data.
    pub(crate) fn none() -> Self {
        Self {
            list: KVec::new(),
            redirty: None,
        }
    }

    /// Takes back the list that was lent.
    fn put_back(&mut self, mut list: KVec<Segment>) {
        // One from the heap is freed; the other was never lent then.
        if self.list.capacity() == 0 {
            list.clear();
            // To drop the empty one is a call.
            core::mem::forget(core::mem::replace(&mut self.list, list));
        }
    }

    /// How pages of `O` are held. Any context.
    #[inline]
    fn take_hold<O: Ownership>(&mut self, direction: DataDirection) -> Result<Hold> {
        if !O::PINNED {
            return Ok(Hold::Reference);
        }
        if !direction.is_from_device() {
            return Ok(Hold::Pin);
        }
        Ok(Hold::WrittenPin(match self.redirty.take() {
            Some(redirty) => redirty,
            None => Redirty::new(GFP_NOWAIT)?,
        }))
    }

    /// Takes back what [`Self::take_hold`] has lent.
    fn put_back_hold(&mut self, hold: Hold) {
        if let Hold::WrittenPin(redirty) = hold {
            self.redirty = Some(redirty);
        }
    }
}

/// What keeps the pages of a request.
enum Hold {
    /// A reference to each folio of a segment.
    Reference,
    /// A pin of each page. The device only reads.
    Pin,
    /// A pin of each page. The device may write, so the pages have to be dirty in the end.
    WrittenPin(Pin<KBox<Redirty>>),
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
    /// They stay pinned, or keep the reference that they have: so nobody else gets them,
    /// also after those who lent them have given them up.
    pub(crate) fn leak(self) {
        core::mem::forget(self);
    }

    /// Takes the DMA mapping down, after which the CPU sees what the device wrote. Any
    /// context. The device must not use the pages any more: it has said so, was reset,
    /// or was never told of them.
    ///
    /// `device` shows that the device is bound. With another one than the pages were mapped
    /// for, they stay so for good, with a warning. The pointer does not tell one binding of a
    /// device from the next: pages have to be unmapped or leaked ([`Self::leak`]) before the
    /// driver is unbound. So they belong into what is behind a [`SrcuRevocable`], which is retired
    /// while the device is bound, and nowhere else.
    ///
    /// [`SrcuRevocable`]: crate::abstractions::pci::revocable::SrcuRevocable
    pub(crate) fn unmap(self, device: &pci::Device<Bound>) -> Pages {
        let mut this = core::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not used any more.
        let mut pages = unsafe { core::mem::ManuallyDrop::take(&mut this.pages) };
        let device = as_raw_device(device);
        if kernel::warn_on!(this.device != NonNull::new(device)) {
            core::mem::forget(pages);
            return Pages {
                list: KVec::new(),
                hold: Hold::Reference,
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

/// Pages that a device has used, or could have used. Dropped, they go back, dirty where it
/// could write to them, which sleeps.
///
/// # Invariants
///
/// Each page of a segment in `list` bears one pin of ours, or each folio of a segment one
/// reference, as `hold` says; the pages of a segment are contiguous.
pub(crate) struct Pages {
    list: KVec<Segment>,
    hold: Hold,
    direction: DataDirection,
}

// SAFETY: Pages may be unpinned by any thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Gives the pages back, and the list to `room`. Any context.
    ///
    /// Returns the pages where one that the device wrote to was cleaned in the meantime, and
    /// must be made dirty again.
    pub(crate) fn release(mut self, room: &mut Room) -> Option<CleanedPages> {
        if let Hold::WrittenPin(_) = self.hold {
            // SAFETY: By the type invariant these pages are pinned.
            if !unsafe { all_dirty(&self.list) } {
                return self.take_cleaned();
            }
        }
        self.give_up(room);
        None
    }

    /// As [`Self::release`], for pages that the device has not written to: it was never told
    /// of them. They go back as they are. Any context.
    pub(crate) fn give_up(self, room: &mut Room) {
        // Not dropped: there is nothing left of it, and to drop an empty list is a call.
        let mut this = core::mem::ManuallyDrop::new(self);
        let list = core::mem::take(&mut this.list);
        // SAFETY: By the type invariant the pins or references are ours, and `this` is not dropped.
        unsafe {
            match this.hold {
                Hold::Reference => unreference(&list),
                Hold::Pin | Hold::WrittenPin(_) => unpin(&list, false),
            }
        }
        room.put_back_hold(core::mem::replace(&mut this.hold, Hold::Reference));
        room.put_back(list);
    }

    /// The pages of [`Hold::WrittenPin`].
    fn take_cleaned(&mut self) -> Option<CleanedPages> {
        match core::mem::replace(&mut self.hold, Hold::Reference) {
            Hold::WrittenPin(mut redirty) => {
                // INVARIANT: The pins go over with the list, and nothing is left in ours.
                *redirty.as_mut().project().list = core::mem::take(&mut self.list);
                Some(CleanedPages(redirty))
            }
            other => {
                self.hold = other;
                None
            }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pins or references are ours, and this is the end of
        // them.
        unsafe {
            match self.hold {
                Hold::Reference => unreference(&self.list),
                Hold::Pin => unpin(&self.list, false),
                Hold::WrittenPin(_) => unpin(&self.list, true),
            }
        }
    }
}

/// Pages that a device wrote to and that are to be made dirty before they go back. That is
/// done when they are dropped, which sleeps for as long as others like: whoever drops them
/// must hold nothing that somebody else needs.
#[must_use = "dropping them sleeps"]
pub(crate) struct CleanedPages(Pin<KBox<Redirty>>);

impl CleanedPages {
    /// Has them dropped by `queue`. Any context.
    pub(crate) fn drop_later(self, queue: &WorkQueue) {
        queue.enqueue(self.0);
    }
}

/// Pages to be made dirty, and what is needed to have that done later; allocated before,
/// because there must be no error then.
///
/// # Invariants
///
/// Each page of a segment in `list` bears one pin of ours; the pages of a segment are
/// contiguous.
#[pin_data(PinnedDrop)]
struct Redirty {
    list: KVec<Segment>,
    #[pin]
    work: Work<Redirty>,
}

impl_has_work! {
    impl HasWork<Self> for Redirty { self.work }
}

impl Redirty {
    /// Nothing to be made dirty.
    fn new(flags: kernel::alloc::Flags) -> Result<Pin<KBox<Self>>> {
        // INVARIANT: There are no pages.
        KBox::pin_init(
            pin_init!(Self {
                list: KVec::new(),
                work <- new_work!("ringbar_redirty"),
            }),
            flags,
        )
    }
}

impl WorkItem for Redirty {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        drop(this);
    }
}

#[pinned_drop]
impl PinnedDrop for Redirty {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the pins are ours, and this is the end of them.
        unsafe { unpin(&self.list, true) };
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

/// Takes a reference to each folio of each segment. `EOPNOTSUPP`, and none, where one has no
/// references: memory of `kmalloc`, or a page within a larger allocation.
///
/// # Safety
///
/// The pages of these segments must be there, those of one segment contiguous.
unsafe fn reference(list: &[Segment]) -> Result {
    for (n, segment) in list.iter().enumerate() {
        let mut taken = 0usize;
        let get = |page| {
            // SAFETY: The page is there, by the requirement.
            let got = unsafe { ringbar_folio_try_get(page) };
            taken += usize::from(got);
            got
        };
        // SAFETY: By the requirement.
        if unsafe { for_each_folio(segment, get) } {
            continue;
        }
        let put = |page| {
            let left = taken > 0;
            if left {
                taken -= 1;
                // SAFETY: The reference was just taken.
                unsafe { ringbar_folio_put(page) };
            }
            left
        };
        // SAFETY: By the requirement; the segments before have all their references.
        unsafe {
            for_each_folio(segment, put);
            unreference(&list[..n]);
        }
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

/// Gives up the references of [`reference`]. Any context.
///
/// # Safety
///
/// Each folio of each segment must bear a reference that the caller gives away with this
/// call; the pages of a segment must be contiguous.
unsafe fn unreference(list: &[Segment]) {
    for segment in list {
        let put = |page| {
            // SAFETY: By the requirement.
            unsafe { ringbar_folio_put(page) };
            true
        };
        // SAFETY: By the requirement; a folio with a reference keeps its size.
        unsafe { for_each_folio(segment, put) };
    }
}

/// Marks the folios dirty before the device writes to them, as long as that may sleep.
/// Mostly they stay so, and [`Pages::release`] has nothing to do.
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
/// The pages of the segment must be there, each until `f` was called for its folio, and
/// contiguous.
unsafe fn for_each_folio(
    segment: &Segment,
    mut f: impl FnMut(*mut bindings::page) -> bool,
) -> bool {
    let mut page = page_of(segment);
    let mut left = pages_of(segment);
    loop {
        // Before `f`, which may let go of the folio. Mostly there is one page, and that need not
        // be asked.
        let step = if left <= 1 {
            1
        } else {
            // SAFETY: The page is there, by the requirement.
            (unsafe { ringbar_pages_to_folio_end(page) } as usize).max(1)
        };
        if !f(page) {
            return false;
        }
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

    /// Contiguous pages, each with references of its own.
    struct Buffer {
        start: NonNull<u8>,
        bytes: usize,
    }

    impl Buffer {
        fn new(pages: usize) -> Result<Self> {
            let bytes = pages * PAGE_SIZE;
            // SAFETY: May be called with any size.
            let start = unsafe { bindings::alloc_pages_exact_noprof(bytes, bindings::GFP_KERNEL) };
            Ok(Self {
                start: NonNull::new(start.cast()).ok_or(ENOMEM)?,
                bytes,
            })
        }
    }

    /// References to these contiguous pages, all together.
    fn references(first: *mut bindings::page, count: usize) -> c_int {
        (0..count)
            .map(|n| {
                // SAFETY: The pages belong to a buffer, and are contiguous.
                unsafe { (&raw const (*first.add(n))._refcount.counter).read_volatile() }
            })
            .sum()
    }

    impl Drop for Buffer {
        fn drop(&mut self) {
            // SAFETY: Allocated by `new`.
            unsafe { bindings::free_pages_exact(self.start.as_ptr().cast(), self.bytes) };
        }
    }

    /// Calls `f` with the pages of a kernel buffer of `pages` pages, into which a device
    /// is to write, without its first `skipped` bytes.
    fn with_kernel_pages(
        pages: usize,
        skipped: usize,
        f: impl FnOnce(PageSource<'_, '_, Borrowed>, u64),
    ) -> Result {
        let buffer = Buffer::new(pages)?;
        with_memory(buffer.start, buffer.bytes, skipped, f)
    }

    /// Calls `f` with the pages of this memory, into which a device is to write, without
    /// its first `skipped` bytes.
    fn with_memory(
        start: NonNull<u8>,
        bytes: usize,
        skipped: usize,
        f: impl FnOnce(PageSource<'_, '_, Borrowed>, u64),
    ) -> Result {
        let vec = bindings::kvec {
            iov_base: start.as_ptr().wrapping_add(skipped).cast(),
            iov_len: bytes - skipped,
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
    fn dr1_pages_that_are_lent_are_kept() -> Result {
        with_kernel_pages(3, 0, |mut source, _| {
            let limits = SegmentLimits::new(usize::MAX, 8, usize::MAX);
            let pages = source.extract(None, usize::MAX, limits);
            let kept = pages.is_ok_and(|mut pages| {
                let first = page_of(&pages.list.filled()[0]);
                let before = references(first, 3);
                let half = pages.split_off_half();
                before == 6 && half.is_some() && references(first, 3) == 6
            });
            assert!(kept);
            source.rewind();
            let again = source.extract(None, usize::MAX, limits);
            assert!(
                again.is_ok_and(|pages| { references(page_of(&pages.list.filled()[0]), 3) == 6 })
            );
        })
    }

    #[test]
    fn dr1_memory_that_cannot_be_kept_is_refused() -> Result {
        let mut small = KVec::<u8>::from_elem(0, 100, GFP_KERNEL)?;
        let mut large = KVec::<u8>::from_elem(0, 8 * PAGE_SIZE, GFP_KERNEL)?;
        for memory in [&mut small[..], &mut large[..]] {
            let bytes = memory.len();
            with_memory(NonNull::from(memory).cast(), bytes, 0, |mut source, _| {
                let limits = SegmentLimits::new(usize::MAX, 8, usize::MAX);
                let error = source.extract(None, usize::MAX, limits).err();
                assert_eq!(error, Some(EOPNOTSUPP));
            })?;
        }
        Ok(())
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
