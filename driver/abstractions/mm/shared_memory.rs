// SPDX-License-Identifier: GPL-2.0

//! Memory of the driver that user space can map and read: numbers, which are read and written one
//! at a time.
//!
//! C headers: [`include/linux/gfp.h`](srctree/include/linux/gfp.h),
//! [`include/linux/vmalloc.h`](srctree/include/linux/vmalloc.h)

use crate::abstractions::helpers::ringbar_page_address;
use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    page::{
        BorrowedPage,
        Page, //
        PAGE_SIZE,
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Atomic, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    }, //
};

/// Number of words in a page.
pub(crate) const WORDS_PER_PAGE: usize = PAGE_SIZE / size_of::<u64>();

/// One page of numbers.
pub(crate) struct WordPage(Page);

impl WordPage {
    /// A page of zeros. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?))
    }

    /// The numbers.
    #[inline]
    pub(crate) fn words(&self) -> &[Atomic<u64>; WORDS_PER_PAGE] {
        // SAFETY: The page is in the direct map (`GFP_KERNEL`), lives as long as `self`, and any
        // content is valid; it is only accessed as atomics.
        unsafe { &*ringbar_page_address(self.0.as_ptr()).cast_const().cast() }
    }

    /// The page, for a map.
    pub(crate) fn page(&self) -> &Page {
        &self.0
    }
}

/// Several pages of numbers, contiguous for the kernel only (`vmalloc`).
///
/// # Invariants
///
/// `words` is a whole number of pages, and never grows.
pub(crate) struct WordArea {
    words: VVec<Atomic<u64>>,
}

impl WordArea {
    /// Pages of zeros. May sleep.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let count = pages.checked_mul(WORDS_PER_PAGE).ok_or(EINVAL)?;
        let mut words = VVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            words.push(Atomic::new(0), GFP_KERNEL)?;
        }
        // INVARIANT: The number of words fills the pages.
        Ok(Self { words })
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        self.words.len() / WORDS_PER_PAGE
    }

    /// The numbers.
    #[inline]
    pub(crate) fn words(&self) -> &[Atomic<u64>] {
        &self.words
    }

    /// Page `index`, for a map.
    pub(crate) fn page(&self, index: usize) -> Option<BorrowedPage<'_>> {
        let first = self.words.get(index.checked_mul(WORDS_PER_PAGE)?)?;
        // SAFETY: `VVec` memory is always a `vmalloc` area, and this is an address within it.
        let page = unsafe { bindings::vmalloc_to_page(core::ptr::from_ref(first).cast()) };
        // SAFETY: The page is valid as long as the area, which `self` owns and never replaces.
        NonNull::new(page).map(|page| unsafe { BorrowedPage::from_raw(page) })
    }
}

/// Coherent memory that only the device writes to; its pages contain nothing else.
///
/// # Invariants
///
/// `memory` was allocated for `device`, its pages filled with zeros.
pub(crate) struct SharedCoherent<U: AsBytes + FromBytes> {
    memory: Coherent<[U]>,
    device: ARef<Device>,
}

impl<U: AsBytes + FromBytes> SharedCoherent<U> {
    /// `count` elements, all zero. May sleep.
    pub(crate) fn zeroed_slice(device: &Device<Bound>, count: usize) -> Result<Self> {
        // INVARIANT: An allocation always has whole pages, all of which are filled
        // (`dma_alloc_attrs`).
        Ok(Self {
            memory: Coherent::zeroed_slice(device, count, GFP_KERNEL)?,
            device: ARef::from(&**device),
        })
    }

    /// The device for which the memory was allocated.
    pub(in crate::abstractions) fn device(&self) -> *mut bindings::device {
        // `Device` is a transparent wrapper of an `Opaque<device>`.
        core::ptr::from_ref(&*self.device).cast_mut().cast()
    }
}

impl<U: AsBytes + FromBytes> Deref for SharedCoherent<U> {
    type Target = Coherent<[U]>;

    #[inline]
    fn deref(&self) -> &Coherent<[U]> {
        &self.memory
    }
}
