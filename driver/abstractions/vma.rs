// SPDX-License-Identifier: GPL-2.0

//! Mapping device memory to user space.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::helpers::{
    ringbar_io_remap_pfn_range,
    ringbar_pgprot_writecombine, //
};
use kernel::{
    error::to_result,
    mm::virt::{
        flags,
        VmaNew, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

/// Physically contiguous device memory that may be mapped to user space.
#[derive(Clone, Copy)]
pub(crate) struct IoMemory {
    start: u64,
    len: u64,
}

impl IoMemory {
    /// `len` bytes from physical address `start`, which must be page aligned
    /// (`EINVAL`). A last page that is not filled is left out: a map shows whole
    /// pages, and what lies beyond the end belongs to somebody else.
    ///
    /// # Safety
    ///
    /// The memory must be a device's own, with nothing in it that user space must
    /// not see or change.
    pub(super) unsafe fn new(start: u64, len: u64) -> Result<Self> {
        let page = PAGE_SIZE as u64;
        if start % page != 0 {
            return Err(EINVAL);
        }
        start.checked_add(len).ok_or(EINVAL)?;
        Ok(Self {
            start,
            len: len - len % page,
        })
    }

    /// Maps the part of the memory that `vma` asks for: its page offset counts
    /// from the start of the memory. Write-combining. Sleeps; called in the `mmap`
    /// callback.
    ///
    /// `EINVAL` for any page beyond the memory and for private writable maps
    /// (whose copies would be no device memory any more), `EACCES` for executable
    /// maps.
    ///
    /// `remap_pfn_range` marks the area so that it is never expanded, dumped or
    /// taken for ordinary pages, so `mremap` cannot grow it past the end.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        if vma.flags() & flags::SHARED == 0 && vma.writable() {
            return Err(EINVAL);
        }
        if vma.executable() {
            return Err(EACCES);
        }
        vma.try_clear_mayexec()?;
        if vma.flags() & flags::SHARED == 0 {
            vma.try_clear_maywrite()?;
        }

        let raw = vma.as_ptr();
        // SAFETY: The area is valid; during `mmap` nobody else changes it.
        let (first_page, prot) = unsafe { ((*raw).vm_pgoff, (*raw).vm_page_prot) };
        let size = vma.end() - vma.start();
        let pages = size >> PAGE_SHIFT;
        // `vm_pgoff` counts pages and may be anything up to `ULONG_MAX >> PAGE_SHIFT`, or more
        // where it comes from `remap_file_pages` and the like: the sum is checked.
        let end = first_page.checked_add(pages).ok_or(EINVAL)?;
        if end as u64 > self.len >> PAGE_SHIFT {
            return Err(EINVAL);
        }
        let pfn = (self.start >> PAGE_SHIFT) as usize + first_page;
        // SAFETY: The area is being set up, and the pages lie within the memory, which by the
        // requirement of `new` may be shown.
        to_result(unsafe {
            ringbar_io_remap_pfn_range(
                raw,
                vma.start(),
                pfn,
                size,
                ringbar_pgprot_writecombine(prot),
            )
        })
    }
}
