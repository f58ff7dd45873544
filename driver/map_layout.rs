// SPDX-License-Identifier: GPL-2.0

//! The contents of a file's pages in a map. See [`uapi`] for the selectors.

use crate::uapi;
use core::ops::Range;
use kernel::page::PAGE_SHIFT;

/// Number of pages of the file that belong to one selector.
const SELECTOR_PAGES: usize = 1 << (uapi::MAP_SHIFT as usize - PAGE_SHIFT);

/// Number of pages from one used ring to the next.
pub(crate) const USED_RING_PAGES: usize = (uapi::USED_RING_STRIDE >> PAGE_SHIFT) as usize;

/// The selector of a page of the file, and the index of the page within the selected contents.
pub(crate) fn split(page: usize) -> (u64, usize) {
    ((page / SELECTOR_PAGES) as u64, page % SELECTOR_PAGES)
}

/// Selectors of the device memory.
const MEMORY: [u64; 3] = [
    uapi::MAP_MEMORY,
    uapi::MAP_MEMORY_UNCACHED,
    uapi::MAP_MEMORY_CACHED,
];

/// Pages of the file that show the device memory from its page `start` on, once for each selector.
pub(crate) fn memory_from(start: usize) -> impl Iterator<Item = Range<usize>> {
    MEMORY.into_iter().map(move |selector| {
        // CAST: A small constant.
        let first = selector as usize * SELECTOR_PAGES;
        first + start.min(SELECTOR_PAGES)..first + SELECTOR_PAGES
    })
}
