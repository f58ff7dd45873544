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
