// SPDX-License-Identifier: GPL-2.0

//! Mapping of pages for DMA.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::{
    direction::Writes,
    extracted::Extracted,
    list::{
        List,
        SG_END, //
    },
    mapping::{
        self,
        Side, //
    },
    ownership::Ownership,
    release::Pages,
    room::{
        Hold,
        Room, //
    }, //
};
use crate::abstractions::{
    dma::range::DmaRange,
    pci::device::as_raw_device, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    device::Bound,
    dma::DataDirection,
    pci,
    prelude::*, //
};

impl<'s, O: Ownership> Extracted<'s, O> {
    /// Maps the pages for DMA by `device`. Short lists move to `room`. Any context.
    ///
    /// `EAGAIN` if the DMA layer has no room at the moment (bounce buffers, IOMMU addresses), or if
    /// the list of `room` is still in use and the heap has no memory; other errors are permanent.
    /// Each error returns the pages.
    #[inline(always)]
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
                // The list of `room` has capacity for it.
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
        let device = as_raw_device(device);
        // SAFETY: The device is bound. The entries are filled, the last one has the end mark, and
        // the pages are pinned or referenced until the list is unmapped.
        let ranges = match unsafe { mapping::map(device, &mut list, this.direction) } {
            Ok(ranges) => ranges,
            Err(error) => {
                room.put_back_hold(hold);
                if fits {
                    list.clear();
                    room.list = list;
                } else {
                    this.list = List::Heap(list);
                }
                return Err((error, core::mem::ManuallyDrop::into_inner(this)));
            }
        };
        let direction = this.direction;
        if fits {
            if let List::Heap(list) = &mut this.list {
                drop(core::mem::take(list));
            }
        }
        // INVARIANT: Mapped. `this`, whose pins or references are taken over, is not dropped, and
        // its list has been moved or freed.
        Ok(Mapped {
            pages: core::mem::ManuallyDrop::new(Pages {
                list,
                hold,
                direction,
            }),
            device: NonNull::new(device),
            ranges,
        })
    }
}

/// Pages that a device may access.
///
/// Dropping this leaves the pages mapped and pinned for ever, with a warning: nothing shows whether
/// the device still accesses them.
///
/// # Invariants
///
/// The list in `pages` is mapped for `device`, in its direction; the first `ranges` entries have
/// the bus addresses of the mapping.
pub(crate) struct Mapped {
    pages: core::mem::ManuallyDrop<Pages>,
    device: Option<NonNull<bindings::device>>,
    ranges: usize,
}

// SAFETY: Any thread may unpin pages and remove DMA mappings.
unsafe impl Send for Mapped {}

impl Mapped {
    /// The mapped ranges, as the device sees them.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = DmaRange<'_>> + '_ {
        let writable = self.pages.direction.is_from_device();
        let mapped = self.pages.list.get(..self.ranges).unwrap_or_default();
        mapped.iter().map(move |segment| {
            let segment = core::ptr::from_ref(segment).cast_mut();
            // SAFETY: A mapped entry; the two functions only read it. It stays mapped as long
            // as `self` lives.
            unsafe {
                DmaRange::new(
                    bindings::sg_dma_address(segment),
                    bindings::sg_dma_len(segment),
                    writable,
                )
            }
        })
    }

    /// Lets the CPU see what the device has written so far, while the pages stay mapped. The device
    /// must have completed its request with them. Any context.
    ///
    /// With a `device` other than that of [`Extracted::map`] nothing happens, with a warning.
    #[allow(
        dead_code,
        reason = "for the drivers of other cards: see docs/own-card.md"
    )]
    pub(crate) fn sync_for_cpu(&self, device: &pci::Device<Bound>) {
        self.sync(device, Side::Cpu);
    }

    /// Gives the pages to the device again, after [`Self::sync_for_cpu`] and before its next request
    /// with them. Any context.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn sync_for_device(&self, device: &pci::Device<Bound>) {
        self.sync(device, Side::Device);
    }

    fn sync(&self, device: &pci::Device<Bound>, side: Side) {
        let device = as_raw_device(device);
        if kernel::warn_on!(self.device != NonNull::new(device)) {
            return;
        }
        // SAFETY: The device is bound, and the list is mapped for it, in this direction.
        unsafe { mapping::sync(device, &self.pages.list, self.pages.direction, side) };
    }

    /// Leaves the pages mapped, for a device that may access them for ever. Any context.
    ///
    /// The pages stay pinned, or keep their reference: so they are never used for anything else,
    /// also after the owner of borrowed pages has released them.
    pub(crate) fn leak(self) {
        core::mem::forget(self);
    }

    /// Removes the DMA mapping, after which the CPU sees the data that the device wrote. Any
    /// context. The device must not access the pages any more: it has completed the request, was
    /// reset, or never had the request.
    ///
    /// `device` shows that the device is bound. If the pages were mapped for another device, they
    /// stay mapped for ever, with a warning. The pointer does not distinguish one binding of a
    /// device from the next: pages have to be unmapped or leaked ([`Self::leak`]) before the driver
    /// is unbound. So they belong behind an [`SrcuRevocable`], which is revoked while the device is
    /// bound, and nowhere else.
    ///
    /// [`SrcuRevocable`]: crate::abstractions::pci::revocable::SrcuRevocable
    #[inline]
    pub(crate) fn unmap(self, device: &pci::Device<Bound>) -> Pages {
        self.unmap_with(device, 0)
    }

    /// As [`Self::unmap`], for pages that the CPU has since [`Self::sync_for_cpu`], or from the
    /// beginning: what it wrote stays, where `unmap` would copy a bounce buffer over it.
    #[allow(
        dead_code,
        reason = "for the drivers of other cards: see docs/own-card.md"
    )]
    pub(crate) fn unmap_synced(self, device: &pci::Device<Bound>) -> Pages {
        self.unmap_with(device, bindings::DMA_ATTR_SKIP_CPU_SYNC as c_ulong)
    }

    #[inline]
    fn unmap_with(self, device: &pci::Device<Bound>, attributes: c_ulong) -> Pages {
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
        // SAFETY: The device is bound, and this list was mapped for it, in this direction.
        unsafe { mapping::unmap(device, &mut pages.list, pages.direction, attributes) };
        pages
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        kernel::warn_on!(true);
    }
}
