// SPDX-License-Identifier: GPL-2.0

//! Extraction of pages from an iterator.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use super::{
    direction::Writes,
    extracted::Extracted,
    folios::{
        mark_dirty,
        reference, //
    },
    list::{
        InlineSegments,
        SegmentLimits, //
    },
    ownership::{
        Borrowed,
        Owned,
        Ownership, //
    }, //
};
use crate::abstractions::fs::iov::IovIter;
use core::{
    marker::PhantomData,
    mem::MaybeUninit, //
};
use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*, //
};

/// Number of pages that are extracted from the iterator at a time. The array of their pointers is
/// on the stack.
const BATCH: usize = 32;

/// Number of pages in which a request of at most the size of a page lies.
const FEW: usize = 2;

/// The pages of an iterator, by their owner.
pub(crate) enum AnyPageSource<'i, 'c> {
    /// User memory.
    User(PageSource<'i, 'c, Owned>),
    /// Memory that is borrowed from the caller.
    Kernel(PageSource<'i, 'c, Borrowed>),
}

impl<'i, 'c> AnyPageSource<'i, 'c> {
    /// The pages of the data, from the iterator's position on.
    #[inline]
    pub(crate) fn new(iter: &'i mut IovIter<'c>) -> Self {
        if iter.will_pin() {
            // SAFETY: Just checked. The kind of an iterator does not change.
            Self::User(unsafe { PageSource::new(iter) })
        } else {
            // SAFETY: As above.
            Self::Kernel(unsafe { PageSource::new(iter) })
        }
    }
}

/// The pages of an iterator.
///
/// # Invariants
///
/// - The iterator pins its pages exactly if `O` does.
/// - It has advanced by `taken` bytes since this was created.
pub(crate) struct PageSource<'i, 'c, O: Ownership> {
    iter: &'i mut IovIter<'c>,
    taken: usize,
    _pages: PhantomData<O>,
}

impl<'i, 'c, O: Ownership> PageSource<'i, 'c, O> {
    /// # Safety
    ///
    /// `iov_iter_extract_will_pin` of `iter` must agree with `O`.
    unsafe fn new(iter: &'i mut IovIter<'c>) -> Self {
        // INVARIANT: By the requirement; nothing was taken.
        Self {
            iter,
            taken: 0,
            _pages: PhantomData,
        }
    }

    /// Extracts pages from the iterator for a request, up to `wanted` bytes or as many as `limits`
    /// allow. Their segments go to `room`, and to the heap if `room` is too small or `None`.
    /// Sleeps: pinning may fault pages in, which may take any time. So the caller must hold nothing
    /// that others need.
    ///
    /// The pages are marked dirty if the device is going to write to them.
    ///
    /// `EFAULT` if no byte could be extracted, `ENOMEM` without memory; if some bytes could, the
    /// next call returns the error. `EOPNOTSUPP` for memory of the kernel that has no references,
    /// such as that of `kmalloc`: nothing could prevent that it is freed.
    #[inline(always)]
    pub(crate) fn extract<'s>(
        &mut self,
        room: Option<&'s mut InlineSegments>,
        wanted: usize,
        limits: SegmentLimits,
    ) -> Result<Extracted<'s, O>> {
        let limit = wanted.min(limits.total());
        let mut extracted = Extracted::new(room, self.iter.direction(), limits)?;
        let mut end = None;
        // Most requests. For these the loop of the general way would only be overhead.
        if limit <= PAGE_SIZE && extracted.list.capacity() >= FEW && self.iter.len() > 0 {
            self.extract_batch::<FEW>(&mut extracted, &mut end, limit, limits.count, limits)?;
        }
        if extracted.bytes() < limit {
            self.extract_rest(&mut extracted, &mut end, wanted, limits)?;
        }
        if !O::PINNED {
            // SAFETY: The pages are borrowed for the length of the call, and so are valid; those of
            // a segment are contiguous.
            if let Err(error) = unsafe { reference(extracted.list.filled()) } {
                // No references are to be released.
                extracted.list.truncate(0);
                return Err(error);
            }
        } else if extracted.direction.is_from_device() {
            // SAFETY: By the type invariant these pages are pinned.
            unsafe { mark_dirty(extracted.list.filled()) };
        }
        Ok(extracted)
    }

    /// Moves the iterator back to its first position. Pages that were extracted stay valid.
    pub(crate) fn rewind(&mut self) {
        // SAFETY: The iterator is valid, and by the type invariant this reverts exactly its
        // advance.
        unsafe { bindings::iov_iter_revert(self.iter.as_raw(), self.taken) };
        // INVARIANT: The iterator is at its first position.
        self.taken = 0;
    }

    /// Extracts pages as [`Self::extract`] does, behind those of `extracted`. An error only if there
    /// are none.
    #[inline(never)]
    fn extract_rest(
        &mut self,
        extracted: &mut Extracted<'_, O>,
        end: &mut Option<u64>,
        wanted: usize,
        limits: SegmentLimits,
    ) -> Result {
        let limit = wanted.min(limits.total());
        while extracted.bytes() < limit && self.iter.len() > 0 {
            let mut left = limit - extracted.bytes();
            if limit < wanted && end.is_some() {
                // Without a part of a page at the end: the next request would pin the rest of that
                // page again.
                left -= left % PAGE_SIZE;
            }
            let room = extracted.room_for(left, limits);
            if room == 0 || left == 0 {
                break;
            }
            match self.extract_batch::<BATCH>(extracted, end, left, room, limits) {
                Ok(()) => {}
                Err(error) if extracted.bytes() == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Extracts up to `N` pages, at most `limit` bytes and `room` segments.
    #[inline(always)]
    fn extract_batch<const N: usize>(
        &mut self,
        extracted: &mut Extracted<'_, O>,
        end: &mut Option<u64>,
        limit: usize,
        room: usize,
        limits: SegmentLimits,
    ) -> Result {
        // Not initialised: most calls need one of them.
        let mut pages = [const { MaybeUninit::<*mut bindings::page>::uninit() }; N];
        let mut array = pages.as_mut_ptr().cast();
        let mut offset = 0;
        // SAFETY: The iterator is valid, `array` has room for that many pages.
        let bytes = unsafe {
            bindings::iov_iter_extract_pages(
                self.iter.as_raw(),
                &mut array,
                limit,
                // Each page may need an entry of its own. CAST: At most `N`, a small number.
                N.min(room) as c_uint,
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
        // INVARIANT: The iterator has advanced by this number of bytes.
        self.taken += bytes;

        let mut left = bytes;
        for page in &pages[..(offset + bytes).div_ceil(PAGE_SIZE).min(N)] {
            // SAFETY: The bytes from `offset` in the first page on were extracted, so a pointer to
            // each page that contains them was stored.
            let page = unsafe { page.assume_init() };
            let length = left.min(PAGE_SIZE - offset);
            // SAFETY:
            // - The page was just extracted, by the type invariant with a pin if `O` says so.
            // - `end` is `None` at first, and only `append` changes it.
            // - No more pages were extracted than the list has room for.
            unsafe { extracted.append(page, offset, length, end, limits) };
            left -= length;
            offset = 0;
        }
        Ok(())
    }
}

#[kernel::macros::kunit_tests(ringbar_extract)]
mod tests {
    use super::{
        super::list::page_of,
        *, //
    };
    use core::ptr::NonNull;

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

    /// Calls `f` with the pages of a kernel buffer of `pages` pages, to which a device is to write,
    /// without its first `skipped` bytes.
    fn with_kernel_pages(
        pages: usize,
        skipped: usize,
        f: impl FnOnce(PageSource<'_, '_, Borrowed>, u64),
    ) -> Result {
        let buffer = Buffer::new(pages)?;
        with_memory(buffer.start, buffer.bytes, skipped, f)
    }

    /// Calls `f` with the pages of this memory, to which a device is to write, without its first
    /// `skipped` bytes.
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
        // SAFETY: The iterator and the memory to which it points live until the end of this
        // function.
        let mut iter = unsafe {
            bindings::iov_iter_kvec(&mut iter, bindings::ITER_DEST, &vec, 1, vec.iov_len);
            IovIter::from_raw(NonNull::from(&mut iter))
        };
        match AnyPageSource::new(&mut iter) {
            AnyPageSource::Kernel(source) => f(source, vec.iov_len as u64),
            AnyPageSource::User(_) => return Err(EINVAL),
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
            // The size of 50 pages, from an offset within a page; 32 pages are extracted at a time.
            let limits = SegmentLimits::new(50 * PAGE_SIZE, 8, usize::MAX);
            let first = source.extract(None, usize::MAX, limits);
            assert!(first.is_ok_and(|first| first.bytes() == 50 * PAGE_SIZE - 100));
            let rest = source.extract(None, usize::MAX, limits);
            assert!(rest.is_ok_and(|rest| rest.bytes() == 30 * PAGE_SIZE));
            source.rewind();
            // A request that the caller limits ends at that limit.
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
}
