// SPDX-License-Identifier: GPL-2.0

//! Mapping memory of a device and of its driver to user space.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::helpers::{
    ringbar_get_page,
    ringbar_io_remap_pfn_range,
    ringbar_pgprot_noncached,
    ringbar_pgprot_writecombine, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
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

/// How the CPU treats accesses to device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Each access by itself, in order.
    Uncached,
    /// Writes may be joined and come late; reads are not cached.
    WriteCombining,
    /// As RAM. Only for memory that is RAM in truth, as in a virtual machine.
    Cached,
}

/// A map that is being made, within the `mmap` callback.
pub(crate) struct NewMap<'a> {
    vma: &'a VmaNew,
    first_page: usize,
}

impl<'a> NewMap<'a> {
    /// The map that `vma` asks for.
    pub(super) fn new(vma: &'a VmaNew) -> Self {
        Self {
            vma,
            // SAFETY: The area is valid; during `mmap` nobody else changes it.
            first_page: unsafe { (*vma.as_ptr()).vm_pgoff },
        }
    }

    /// Offset in the file, in pages.
    pub(crate) fn first_page(&self) -> usize {
        self.first_page
    }

    /// The same map with page `start` of the file as its page 0. `EINVAL` where it
    /// begins before that.
    pub(crate) fn relative_to(self, start: usize) -> Result<Self> {
        Ok(Self {
            first_page: self.first_page.checked_sub(start).ok_or(EINVAL)?,
            ..self
        })
    }

    fn pages(&self) -> usize {
        (self.vma.end() - self.vma.start()) >> PAGE_SHIFT
    }

    /// `EINVAL` unless the map lies within so many pages. The offset may be
    /// anything, so the sum is checked.
    fn within(&self, pages: usize) -> Result {
        let end = self.first_page.checked_add(self.pages()).ok_or(EINVAL)?;
        if end > pages {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// `EACCES` for executable maps, now and by a later `mprotect`.
    fn never_executable(&self) -> Result {
        if self.vma.executable() {
            return Err(EACCES);
        }
        self.vma.try_clear_mayexec()
    }

    /// `EACCES` for writable maps, now and by a later `mprotect`.
    fn never_writable(&self) -> Result {
        if self.vma.writable() {
            return Err(EACCES);
        }
        self.vma.try_clear_maywrite()
    }

    /// Private maps only for reading: `EINVAL` for a private writable map, whose
    /// pages would become copies.
    fn no_copies(&self) -> Result {
        if self.vma.flags() & flags::SHARED != 0 {
            return Ok(());
        }
        if self.vma.writable() {
            return Err(EINVAL);
        }
        self.vma.try_clear_maywrite()
    }

    /// Prepares a read-only map of `pages` pages that a fault handler provides.
    ///
    /// `EINVAL` beyond them and for private writable maps, `EACCES` for writable
    /// and executable ones.
    pub(crate) fn faulted(&self, pages: usize) -> Result {
        self.within(pages)?;
        self.no_copies()?;
        self.never_writable()?;
        self.never_executable()?;
        // Never grown past the end, nor dumped.
        self.vma.set_dontexpand();
        self.vma.set_dontdump();
        Ok(())
    }

    /// Maps a coherent DMA allocation, read-only. Errors as of [`Self::faulted`].
    ///
    /// # Safety
    ///
    /// `cpu_addr` and `dma_addr` must be those of a live coherent allocation of
    /// `size` bytes for `device`. The pages must hold nothing that user space must
    /// not see, and must not be freed before the map is taken away.
    pub(super) unsafe fn coherent(
        &self,
        device: *mut bindings::device,
        cpu_addr: *mut c_void,
        dma_addr: u64,
        size: usize,
    ) -> Result {
        self.faulted(size.div_ceil(PAGE_SIZE))?;
        let raw = self.vma.as_ptr();
        // SAFETY: The area is being set up. `dma_mmap_attrs` takes its offset for one into the
        // allocation; all pages of it are within, as was just checked.
        to_result(unsafe {
            (*raw).vm_pgoff = self.first_page;
            bindings::dma_mmap_attrs(
                device,
                raw,
                cpu_addr,
                dma_addr,
                size.next_multiple_of(PAGE_SIZE),
                0,
            )
        })
    }
}

/// Physically contiguous device memory that may be mapped to user space.
#[derive(Clone, Copy)]
pub(crate) struct IoMemory {
    start: u64,
    pages: usize,
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
        if start % PAGE_SIZE as u64 != 0 {
            return Err(EINVAL);
        }
        start.checked_add(len).ok_or(EINVAL)?;
        Ok(Self {
            start,
            pages: usize::try_from(len >> PAGE_SHIFT)?,
        })
    }

    /// The first `len` bytes of it, or all where it has fewer. A last page that is
    /// not filled is left out.
    pub(crate) fn first(&self, len: u64) -> Self {
        Self {
            start: self.start,
            // Where this does not fit, neither does the memory's own size come near it.
            pages: usize::try_from(len >> PAGE_SHIFT)
                .unwrap_or(usize::MAX)
                .min(self.pages),
        }
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Makes `map` one of this memory. Sleeps.
    ///
    /// `EINVAL` for any page beyond the memory and for private writable maps,
    /// `EACCES` for executable ones; `ENOMEM` without memory, which on x86 is `EINVAL`
    /// where there is none to note the memory type of the pages.
    ///
    /// `remap_pfn_range` marks the area so that it is never expanded, dumped or
    /// taken for ordinary pages, so `mremap` cannot grow it past the end. (A
    /// driver with `mmap_prepare` would say the same by `mmap_action_ioremap`, and
    /// the core would do the remapping after the area is linked; here it is done
    /// in the callback, and [`super::address_space`] looks after the gap.)
    pub(crate) fn map(&self, map: &NewMap<'_>, caching: Caching) -> Result {
        map.within(self.pages)?;
        map.no_copies()?;
        map.never_executable()?;

        let raw = map.vma.as_ptr();
        // SAFETY: The area is valid; during `mmap` nobody else changes it.
        let prot = unsafe { (*raw).vm_page_prot };
        let prot = match caching {
            // SAFETY: Only computes.
            Caching::Uncached => unsafe { ringbar_pgprot_noncached(prot) },
            // SAFETY: Only computes.
            Caching::WriteCombining => unsafe { ringbar_pgprot_writecombine(prot) },
            Caching::Cached => prot,
        };
        let pfn = (self.start >> PAGE_SHIFT) as usize + map.first_page;
        // SAFETY: The area is being set up, and the pages lie within the memory, which by the
        // requirement of `new` may be shown.
        to_result(unsafe {
            ringbar_io_remap_pfn_range(raw, map.vma.start(), pfn, map.pages() << PAGE_SHIFT, prot)
        })
    }
}

/// A reference to a page, to be put into a process's page table.
///
/// # Invariants
///
/// Holds a reference to an ordinary page of RAM that user space may see.
pub(crate) struct SharedPage(NonNull<bindings::page>);

impl SharedPage {
    /// Takes a reference to `page`.
    ///
    /// # Safety
    ///
    /// `page` must be alive, of order 0, not a slab's, and hold nothing that user
    /// space must not see.
    pub(super) unsafe fn new(page: NonNull<bindings::page>) -> Self {
        // SAFETY: Alive by the requirement.
        unsafe { ringbar_get_page(page.as_ptr()) };
        // INVARIANT: By the requirement.
        Self(page)
    }

    /// The page, with its reference.
    pub(super) fn into_raw(self) -> *mut bindings::page {
        self.0.as_ptr()
    }
}
