// SPDX-License-Identifier: GPL-2.0

//! Mapping memory of a device and of its driver to user space.
//!
//! A map is asked for as a [`NewMap`] and answered with a [`Mapped`], which only
//! the functions have that make one. There are three kinds:
//!
//! - device memory, [`map_device`]: all pages are there from the start;
//! - coherent memory, [`map_coherent`]: likewise, and read-only;
//! - pages of RAM, [`NewMap::faulted`]: each comes when it is first touched, by
//!   [`PageFault::install`]; read-only.
//!
//! The first two take a [`Part`] of an [`SrcuRevocable`], which takes all maps away before the
//! memory goes.
//!
//! [`SrcuRevocable`]: crate::abstractions::pci::revocable::SrcuRevocable
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    address_space::AddressSpace,
    caching::Caching,
    shared_memory::SharedCoherent, //
};
use crate::abstractions::{
    helpers::ringbar_io_remap_pfn_range,
    pci::{
        device::ClaimedBar,
        revocable::{
            Guard,
            Part, //
        }, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr, //
};
use kernel::{
    bindings,
    error::to_result,
    mm::virt::{
        flags, //
        VmaNew,
        VmaRef,
    },
    page::{
        Page, //
        PAGE_SHIFT,
        PAGE_SIZE,
    },
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    }, //
};

/// What kind of map was made.
#[derive(Clone, Copy)]
pub(in crate::abstractions) enum Kind {
    Device,
    Coherent,
    Faulted,
}

/// A map that was made, as a [`NewMap`] of the same lifetime asked for.
pub(crate) struct Mapped<'a> {
    kind: Kind,
    caching: Option<Caching>,
    /// Neither longer nor shorter: it answers this call and no other.
    _map: PhantomData<fn(&'a ()) -> &'a ()>,
}

/// A map that is being made, within the `mmap` callback.
pub(crate) struct NewMap<'a> {
    vma: &'a VmaNew,
    /// Where it will belong.
    space: &'a AddressSpace,
    first_page: usize,
}

impl<'a> NewMap<'a> {
    /// The map that `vma` asks for, which will belong to `space`.
    pub(in crate::abstractions) fn new(vma: &'a VmaNew, space: &'a AddressSpace) -> Self {
        Self {
            vma,
            space,
            // SAFETY: The area is valid; during `mmap` nobody else changes it.
            first_page: unsafe { (*vma.as_ptr()).vm_pgoff },
        }
    }

    /// Ends the setting up of the area: says what it is.
    pub(in crate::abstractions) fn finish(vma: &VmaNew, mapped: &Mapped<'a>) -> Kind {
        // SAFETY: The area is being set up.
        unsafe { (*vma.as_ptr()).vm_private_data = Caching::into_raw(mapped.caching) };
        mapped.kind
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

    /// `EINVAL` unless the map will belong where those of `part` are taken away.
    fn belongs_to<U: ?Sized>(&self, part: &Part<'_, U>) -> Result {
        if ptr::eq(self.space, part.maps()) {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// `EACCES` for executable maps, now and by a later `mprotect`.
    ///
    /// For a process whose every readable map is to be executable
    /// (`READ_IMPLIES_EXEC`), this one is not, as it would be for a file of sysfs,
    /// which is mounted `noexec`: such a process has not asked for it.
    fn never_executable(&self) -> Result {
        if self.vma.executable() {
            // SAFETY: The current task is valid, and nobody else writes this field of it.
            let personality = unsafe { (*kernel::current!().as_ptr()).personality };
            if personality & bindings::READ_IMPLIES_EXEC == 0 {
                return Err(EACCES);
            }
            let raw = self.vma.as_ptr();
            let allowed = self.vma.flags() & !flags::EXEC;
            // SAFETY: The area is being set up, and to take a right away leaves the flags valid.
            // The protection is what the flags say; no caching was chosen so far.
            unsafe {
                (*raw).__bindgen_anon_2.vm_flags = allowed;
                (*raw).vm_page_prot = bindings::vm_get_page_prot(allowed);
            }
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

    /// Checks and prepares a read-only map of `pages` pages.
    fn read_only(&self, pages: usize) -> Result {
        self.within(pages)?;
        self.no_copies()?;
        self.never_writable()?;
        self.never_executable()?;
        // Never grown past the end, nor dumped.
        self.vma.set_dontexpand();
        self.vma.set_dontdump();
        Ok(())
    }

    /// Makes a read-only map of `pages` pages of RAM that the fault handler provides.
    ///
    /// `EINVAL` beyond them and for private writable maps, `EACCES` for writable
    /// and executable ones.
    pub(crate) fn faulted(self, pages: usize) -> Result<Mapped<'a>> {
        self.read_only(pages)?;
        self.vma.set_mixedmap();
        Ok(Mapped {
            kind: Kind::Faulted,
            caching: None,
            _map: PhantomData,
        })
    }
}

/// Makes `map` one of coherent memory, read-only. Errors as of [`NewMap::faulted`];
/// `EINVAL` also for memory of another device. Sleeps.
pub(crate) fn map_coherent<'a, U: AsBytes + FromBytes>(
    memory: &Part<'_, SharedCoherent<U>>,
    map: NewMap<'a>,
) -> Result<Mapped<'a>> {
    map.belongs_to(memory)?;
    let device = memory.raw_device();
    if memory.device() != device {
        return Err(EINVAL);
    }
    let size = memory.size().next_multiple_of(PAGE_SIZE);
    map.read_only(size >> PAGE_SHIFT)?;
    let raw = map.vma.as_ptr();
    // SAFETY:
    // - The area is being set up. `dma_mmap_attrs` takes its offset for one into the allocation, all
    //   pages of it are within, as was just checked, and afterwards it is the file's again: by that
    //   the area is linked, found, and shown to user space.
    // - The memory is an allocation for this very device, which is bound as long as there is a
    //   `Part`. Its pages hold nothing else (`SharedCoherent`), and by the invariants of `Part` it
    //   is there until all maps of the address space are taken away, to which this one belongs.
    to_result(unsafe {
        let in_file = (*raw).vm_pgoff;
        (*raw).vm_pgoff = map.first_page;
        let result = bindings::dma_mmap_attrs(
            device,
            raw,
            memory.as_mut_ptr().cast(),
            memory.dma_address(),
            size,
            0,
        );
        (*raw).vm_pgoff = in_file;
        result
    })?;
    Ok(Mapped {
        kind: Kind::Coherent,
        caching: None,
        _map: PhantomData,
    })
}

/// Physically contiguous memory of a device, within a BAR that the driver has
/// claimed.
///
/// # Invariants
///
/// The pages lie within the BAR.
pub(crate) struct IoMemory {
    start: u64,
    pages: usize,
    /// Nobody else's as long as there is this.
    bar: ClaimedBar,
}

impl IoMemory {
    /// `len` bytes from `offset` of a BAR. `EINVAL` where they are not within it or do
    /// not begin at a page. A last page that is not filled is left out: a map shows
    /// whole pages, and what lies beyond the end belongs to somebody else.
    pub(crate) fn new(bar: ClaimedBar, offset: u64, len: u64) -> Result<Self> {
        let range = bar.range();
        let start = range.start.checked_add(offset).ok_or(EINVAL)?;
        let end = start.checked_add(len).ok_or(EINVAL)?;
        if end > range.end || start % PAGE_SIZE as u64 != 0 {
            return Err(EINVAL);
        }
        // INVARIANT: As was just checked.
        Ok(Self {
            start,
            pages: usize::try_from(len >> PAGE_SHIFT)?,
            bar,
        })
    }

    /// Number of its whole pages.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }
}

/// Makes `map` one of the first `pages` pages of device memory. Sleeps.
///
/// - `EINVAL` for any page beyond them, for private writable maps, and for memory of another
///   device, `EACCES` for executable ones.
/// - `EBUSY` while there are maps that treat the memory otherwise: on x86 the kernel
///   would hand out theirs instead, without a word.
/// - `EOPNOTSUPP` for [`Caching::Cached`] where the memory cannot be cached, as that
///   below 4 GiB on most PCs, where MTRRs say so.
/// - `ENOMEM` without memory, which on x86 is `EINVAL` where there is none to note the
///   memory type of the pages.
///
/// `remap_pfn_range` marks the area so that it is never expanded, dumped or
/// taken for ordinary pages, so `mremap` cannot grow it past the end. (A
/// driver with `mmap_prepare` would say the same by `mmap_action_ioremap`, and
/// the core would do the remapping after the area is linked; but then there is no
/// area to give to `dma_mmap_attrs`, nor to see which caching came out. Here it is
/// done in the callback, and [`crate::abstractions::mm::address_space`] looks after the gap.)
pub(crate) fn map_device<'a>(
    memory: &Part<'_, IoMemory>,
    map: NewMap<'a>,
    pages: usize,
    caching: Caching,
) -> Result<Mapped<'a>> {
    map.belongs_to(memory)?;
    if memory.bar.raw_device() != memory.raw_device() {
        return Err(EINVAL);
    }
    map.within(pages.min(memory.pages))?;
    map.no_copies()?;
    map.never_executable()?;

    map.space.add_caching(caching)?;
    remap(memory, &map, caching).inspect_err(|_| map.space.remove_caching())?;
    Ok(Mapped {
        kind: Kind::Device,
        caching: Some(caching),
        _map: PhantomData,
    })
}

/// Fills the map, which lies within the memory.
fn remap(memory: &Part<'_, IoMemory>, map: &NewMap<'_>, caching: Caching) -> Result {
    let raw = map.vma.as_ptr();
    // SAFETY: The area is valid; during `mmap` nobody else changes it.
    let prot = caching.apply(unsafe { (*raw).vm_page_prot });
    // CAST: A page number.
    let pfn = (memory.start >> PAGE_SHIFT) as usize + map.first_page;
    // SAFETY: The area is being set up. The pages lie within a BAR of this very device, of memory,
    // that is this driver's, and by the invariants of `Part` it is until all maps of the address
    // space are taken away, to which this one belongs.
    to_result(unsafe {
        (*raw).vm_page_prot = prot;
        ringbar_io_remap_pfn_range(raw, map.vma.start(), pfn, map.pages() << PAGE_SHIFT, prot)
    })?;

    check_caching(map, caching).inspect_err(|_| {
        // The core does that too, but only after the map has been forgotten here, and then nobody
        // who takes maps away waits for it.
        // SAFETY: The area is valid, and the lock of the process's memory is held during `mmap`.
        unsafe { bindings::zap_special_vma_range(raw, map.vma.start(), map.pages() << PAGE_SHIFT) };
    })
}

/// Whether the map, which has been filled, has this caching. x86 notes one memory type for
/// each page, and MTRRs have their say: what comes out may be weaker than what was asked for. It
/// is the same for all pages.
fn check_caching(map: &NewMap<'_>, caching: Caching) -> Result {
    let mut first = bindings::follow_pfnmap_args {
        vma: map.vma.as_ptr(),
        address: map.vma.start(),
        ..pin_init::zeroed()
    };
    // SAFETY: The area is valid, and the lock of the process's memory is held during `mmap`.
    let prot = unsafe {
        to_result(bindings::follow_pfnmap_start(&mut first))?;
        bindings::follow_pfnmap_end(&mut first);
        first.pgprot
    };
    match (caching.is_in(prot), caching) {
        (true, _) => Ok(()),
        (false, Caching::Cached) => Err(EOPNOTSUPP),
        // Somebody has mapped the memory past this driver.
        (false, _) => Err(EBUSY),
    }
}

/// The first touch of a page of a map that was [`NewMap::faulted`].
pub(crate) struct PageFault<'a> {
    vma: &'a VmaRef,
    space: &'a AddressSpace,
    address: usize,
    page: usize,
}

/// A page was put where a fault was.
pub(crate) struct Installed(());

impl<'a> PageFault<'a> {
    /// The fault of a map that belongs to `space`.
    ///
    /// # Safety
    ///
    /// `fault` must be the one of a fault callback that runs during `'a`.
    pub(in crate::abstractions) unsafe fn from_raw(
        fault: *const bindings::vm_fault,
        space: &'a AddressSpace,
    ) -> Self {
        // SAFETY: By the requirement the fault is valid, and its area is locked.
        let (place, vma) = unsafe {
            let place = &(*fault).__bindgen_anon_1;
            (place, VmaRef::from_raw(place.vma))
        };
        Self {
            vma,
            space,
            address: place.address,
            page: place.pgoff,
        }
    }

    /// The page of the file that was touched.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Puts `page` there, which stays as long as it is mapped. Sleeps.
    ///
    /// Whoever takes maps away revokes access first and waits until all guards are gone:
    /// what is put there by the holder of one is seen, and taken away again. `EINVAL`
    /// for an `SrcuRevocable` that does not look after this map.
    pub(crate) fn install<T>(self, page: &Page, guard: &Guard<'_, T>) -> Result<Installed> {
        if !ptr::eq(self.space, guard.maps()) {
            return Err(EINVAL);
        }
        let area = self.vma.as_mixedmap_vma().ok_or(EINVAL)?;
        match area.vm_insert_page(self.address, page) {
            Ok(()) => Ok(Installed(())),
            // Another thread was faster.
            Err(error) if error == EBUSY => Ok(Installed(())),
            Err(error) => Err(error),
        }
    }
}
