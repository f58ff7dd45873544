// SPDX-License-Identifier: GPL-2.0

//! The pages behind a list of segments: their pins and references, and whether they are dirty. The
//! list names the pages; the caller has to ensure that they are valid.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! `Documentation/core-api/pin_user_pages.rst`

use super::list::{
    page_of,
    pages_of,
    Segment, //
};
use crate::abstractions::helpers::{
    ringbar_folio_put,
    ringbar_folio_try_get,
    ringbar_page_folio_dirty,
    ringbar_pages_to_folio_end, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// Releases a pin of each page; marks the pages dirty before if `dirty`, which sleeps.
///
/// # Safety
///
/// Each page of these segments must have a pin that this call takes over; the pages of a segment
/// must be contiguous.
pub(super) unsafe fn unpin(list: &[Segment], dirty: bool) {
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

/// Takes a reference to each folio of each segment. `EOPNOTSUPP`, and no reference, if one of them
/// has no references: memory of `kmalloc`, or a page within a larger allocation.
///
/// # Safety
///
/// The pages of these segments must be valid, those of one segment contiguous.
pub(super) unsafe fn reference(list: &[Segment]) -> Result {
    for (n, segment) in list.iter().enumerate() {
        let mut taken = 0usize;
        let get = |page| {
            // SAFETY: The page is valid, by the requirement.
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
        // SAFETY: By the requirement; all folios of the earlier segments have our references.
        unsafe {
            for_each_folio(segment, put);
            unreference(&list[..n]);
        }
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

/// Releases the references of [`reference`]. Any context.
///
/// # Safety
///
/// Each folio of each segment must have a reference that this call takes over; the pages of a
/// segment must be contiguous.
pub(super) unsafe fn unreference(list: &[Segment]) {
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

/// Marks the folios dirty before the device writes to them, while the caller may sleep. In most
/// cases they stay dirty, and [`Pages::release`](super::Pages::release) has nothing to do.
///
/// # Safety
///
/// The pages of these segments must be pinned, those of one segment contiguous.
pub(super) unsafe fn mark_dirty(list: &[Segment]) {
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
pub(super) unsafe fn all_dirty(list: &[Segment]) -> bool {
    list.iter().all(|segment| {
        // SAFETY: The page is pinned, by the requirement.
        let is_dirty = |page| unsafe { ringbar_page_folio_dirty(page) };
        // SAFETY: By the requirement.
        unsafe { for_each_folio(segment, is_dirty) }
    })
}

/// Calls `f` with one page of each folio that the segment contains, until `f` returns false.
/// Returns whether `f` always returned true.
///
/// # Safety
///
/// The pages of the segment must be contiguous, and each must be valid until `f` was called for its
/// folio.
unsafe fn for_each_folio(
    segment: &Segment,
    mut f: impl FnMut(*mut bindings::page) -> bool,
) -> bool {
    let mut page = page_of(segment);
    let mut left = pages_of(segment);
    loop {
        // Before `f`, which may release the folio. In most cases there is one page, for which the
        // call is not necessary.
        let step = if left <= 1 {
            1
        } else {
            // SAFETY: The page is valid, by the requirement.
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
