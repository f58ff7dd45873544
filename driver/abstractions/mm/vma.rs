// SPDX-License-Identifier: GPL-2.0

//! Mapping memory of a device and of its driver to user space.
//!
//! A request for a map is a [`NewMap`], and its result is a [`Mapped`], which only the functions
//! that make maps return. There are three kinds:
//!
//! - device memory, [`map_device`]: all pages are mapped at once;
//! - coherent memory, [`map_coherent`]: likewise, and read-only;
//! - pages of RAM, [`NewMap::faulted`]: each page is inserted at its first access, by
//!   [`PageFault::install`]; read-only.
//!
//! The first two take a [`Part`] of an [`SrcuRevocable`], which zaps all maps before the memory is
//! freed.
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

/// The kind of a map that was made.
#[derive(Clone, Copy)]
pub(in crate::abstractions) enum Kind {
    Device,
    Coherent,
    Faulted,
}

/// A map that was made, for the [`NewMap`] of the same lifetime.
pub(crate) struct Mapped<'a> {
    kind: Kind,
    caching: Option<Caching>,
    /// Invariant in the lifetime: the result belongs to this call and no other.
    _map: PhantomData<fn(&'a ()) -> &'a ()>,
}

/// A map that is being made, within the `mmap` callback.
pub(crate) struct NewMap<'a> {
    vma: &'a VmaNew,
    /// The address space to which the map will belong.
    space: &'a AddressSpace,
    first_page: usize,
}

impl<'a> NewMap<'a> {
    /// The map that `vma` requests, which will belong to `space`.
    pub(in crate::abstractions) fn new(vma: &'a VmaNew, space: &'a AddressSpace) -> Self {
        Self {
            vma,
            space,
            // SAFETY: The area is valid; during `mmap` nobody else changes it.
            first_page: unsafe { (*vma.as_ptr()).vm_pgoff },
        }
    }

    /// Completes the area: stores its caching, and returns its kind.
    pub(in crate::abstractions) fn finish(vma: &VmaNew, mapped: &Mapped<'a>) -> Kind {
        // SAFETY: The area is being set up.
        unsafe { (*vma.as_ptr()).vm_private_data = Caching::into_raw(mapped.caching) };
        mapped.kind
    }

    /// Offset in the file, in pages.
    pub(crate) fn first_page(&self) -> usize {
        self.first_page
    }

    /// The same map, with page `start` of the file as its page 0. `EINVAL` if it begins before
    /// that.
    pub(crate) fn relative_to(self, start: usize) -> Result<Self> {
        Ok(Self {
            first_page: self.first_page.checked_sub(start).ok_or(EINVAL)?,
            ..self
        })
    }

    fn pages(&self) -> usize {
        (self.vma.end() - self.vma.start()) >> PAGE_SHIFT
    }

    /// `EINVAL` unless the map lies within this number of pages. The offset may have any value, so
    /// the sum is checked.
    fn within(&self, pages: usize) -> Result {
        let end = self.first_page.checked_add(self.pages()).ok_or(EINVAL)?;
        if end > pages {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// `EINVAL` unless the map will belong to the address space whose maps are zapped with `part`.
    fn belongs_to<U: ?Sized>(&self, part: &Part<'_, U>) -> Result {
        if ptr::eq(self.space, part.maps()) {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// `EACCES` for executable maps, now and by a later `mprotect`.
    ///
    /// In a process whose every readable map is to be executable (`READ_IMPLIES_EXEC`), this map is
    /// allowed but not executable, as for a file of sysfs, which is mounted `noexec`: such a
    /// process did not request execution of this map.
    fn never_executable(&self) -> Result {
        if self.vma.executable() {
            // SAFETY: The current task is valid, and nobody else writes this field of it.
            let personality = unsafe { (*kernel::current!().as_ptr()).personality };
            if personality & bindings::READ_IMPLIES_EXEC == 0 {
                return Err(EACCES);
            }
            let raw = self.vma.as_ptr();
            let allowed = self.vma.flags() & !flags::EXEC;
            // SAFETY: The area is being set up, and removing a right leaves the flags valid. The
            // protection corresponds to the flags; no caching was chosen so far.
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

    /// Private maps only for reading: `EINVAL` for a private writable map, whose pages would become
    /// copies.
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
        // Never grown beyond the end, nor dumped.
        self.vma.set_dontexpand();
        self.vma.set_dontdump();
        Ok(())
    }

    /// Makes a read-only map of `pages` pages of RAM that the fault handler provides.
    ///
    /// `EINVAL` for pages beyond them and for private writable maps, `EACCES` for writable and
    /// executable ones.
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

/// Makes `map` a map of coherent memory, read-only. Errors as of [`NewMap::faulted`]; `EINVAL` also
/// for memory of another device. Sleeps.
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
    // - The area is being set up. `dma_mmap_attrs` interprets its offset as an offset in the
    //   allocation, all pages of it are within, as was just checked, and afterwards the offset is
    //   the file's again: by that the area is linked, found, and shown to user space.
    // - The memory is an allocation for this very device, which is bound as long as there is a
    //   `Part`. Its pages contain nothing else (`SharedCoherent`), and by the invariants of `Part`
    //   it is valid until all maps of the address space are zapped, to which this one belongs.
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

/// Physically contiguous memory of a device, within a BAR that the driver has claimed.
///
/// # Invariants
///
/// The pages lie within the BAR.
pub(crate) struct IoMemory {
    start: u64,
    pages: usize,
    /// Claimed by this driver as long as this value exists.
    bar: ClaimedBar,
}

impl IoMemory {
    /// `len` bytes from `offset` of a BAR. `EINVAL` if they are not within it or do not begin at a
    /// page. Without a last page that is not full: a map shows whole pages, and the memory beyond
    /// the end belongs to another owner.
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

    /// Number of whole pages.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }
}

/// Makes `map` a map of the first `pages` pages of device memory. Sleeps.
///
/// - `EINVAL` for any page beyond them, for private writable maps, and for memory of another
///   device, `EACCES` for executable ones.
/// - `EBUSY` while there are maps with another caching: on x86 the kernel would silently use that
///   caching instead.
/// - `EOPNOTSUPP` for [`Caching::Cached`] if the memory cannot be cached, such as memory below 4
///   GiB on most PCs, because of MTRRs.
/// - `ENOMEM` without memory; on x86 `EINVAL` if there is no memory to record the memory type of
///   the pages.
///
/// `remap_pfn_range` marks the area so that it is never expanded, dumped or taken for ordinary
/// pages, so `mremap` cannot grow it beyond the end. (A driver with `mmap_prepare` would request
/// the same by `mmap_action_ioremap`, and the core would remap after the area is linked; but then
/// there is no area for `dma_mmap_attrs`, nor a way to check the resulting caching. Here the
/// callback remaps, and [`crate::abstractions::mm::address_space`] handles the time until the area
/// is linked.)
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
    // SAFETY: The area is being set up. The pages lie within a BAR of this very device, which
    // consists of memory and is claimed by this driver; by the invariants of `Part` it stays so
    // until all maps of the address space are zapped, to which this one belongs.
    to_result(unsafe {
        (*raw).vm_page_prot = prot;
        ringbar_io_remap_pfn_range(raw, map.vma.start(), pfn, map.pages() << PAGE_SHIFT, prot)
    })?;

    check_caching(map, caching).inspect_err(|_| {
        // The core does that too, but only after the address space has forgotten the map, and then
        // no thread that zaps maps waits for it.
        // SAFETY: The area is valid, and the memory lock of the process is held during `mmap`.
        unsafe { bindings::zap_special_vma_range(raw, map.vma.start(), map.pages() << PAGE_SHIFT) };
    })
}

/// Whether the map, which has been filled, has this caching. x86 records one memory type for each
/// page, and MTRRs restrict it: the resulting type may be weaker than the requested one. It is the
/// same for all pages.
fn check_caching(map: &NewMap<'_>, caching: Caching) -> Result {
    let mut first = bindings::follow_pfnmap_args {
        vma: map.vma.as_ptr(),
        address: map.vma.start(),
        ..pin_init::zeroed()
    };
    // SAFETY: The area is valid, and the memory lock of the process is held during `mmap`.
    let prot = unsafe {
        to_result(bindings::follow_pfnmap_start(&mut first))?;
        bindings::follow_pfnmap_end(&mut first);
        first.pgprot
    };
    match (caching.is_in(prot), caching) {
        (true, _) => Ok(()),
        (false, Caching::Cached) => Err(EOPNOTSUPP),
        // The memory has a map that this driver did not make.
        (false, _) => Err(EBUSY),
    }
}

/// The first access to a page of a map that was [`NewMap::faulted`].
pub(crate) struct PageFault<'a> {
    vma: &'a VmaRef,
    space: &'a AddressSpace,
    address: usize,
    page: usize,
}

/// The proof that a page was inserted at the address of a fault.
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

    /// The page of the file that was accessed.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Inserts `page`, which stays valid as long as it is mapped. Sleeps.
    ///
    /// A thread that zaps all maps revokes access first and waits for all guards: so it finds a
    /// page that the owner of a guard has inserted, and zaps it. `EINVAL` for an `SrcuRevocable`
    /// that does not zap this map.
    pub(crate) fn install<T>(self, page: &Page, guard: &Guard<'_, T>) -> Result<Installed> {
        if !ptr::eq(self.space, guard.maps()) {
            return Err(EINVAL);
        }
        let area = self.vma.as_mixedmap_vma().ok_or(EINVAL)?;
        match area.vm_insert_page(self.address, page) {
            Ok(()) => Ok(Installed(())),
            // Another thread has inserted the page already.
            Err(error) if error == EBUSY => Ok(Installed(())),
            Err(error) => Err(error),
        }
    }
}
