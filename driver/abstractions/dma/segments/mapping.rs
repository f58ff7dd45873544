// SPDX-License-Identifier: GPL-2.0

//! DMA mappings of scatterlists.
//!
//! Most requests have one segment. The functions for one range (`dma_map_phys`) execute half the
//! instructions of those for a list (`dma_map_sgtable`), and leave the same in the entry. A list of
//! one entry is always mapped, synced and unmapped by the former: `CONFIG_DMA_API_DEBUG` checks that
//! each mapping is removed in the way in which it was made. `dma_map_page_attrs` refuses pages of
//! `ZONE_DEVICE` with that option, which lists may have (files on persistent memory).
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::list::{
    page_of,
    Segment, //
};
use crate::abstractions::helpers::{
    ringbar_dma_mapping_error,
    ringbar_dma_sync_sg_for_cpu,
    ringbar_dma_sync_sg_for_device,
    ringbar_dma_sync_single_for_cpu,
    ringbar_dma_sync_single_for_device,
    ringbar_page_to_phys, //
};
use kernel::{
    bindings,
    dma::DataDirection,
    prelude::*, //
};

/// Maps the list. Returns the number of ranges that the device sees: so many entries from the first
/// on have a bus address. Any context.
///
/// `EAGAIN` if the DMA layer has no room at the moment, and for each error of a list of one entry,
/// for which it gives no reason; other errors are permanent.
///
/// # Safety
///
/// `device` is bound. The entries are filled, the last one has the end mark, and the pages stay
/// until the list is unmapped.
#[inline]
pub(super) unsafe fn map(
    device: *mut bindings::device,
    list: &mut [Segment],
    direction: DataDirection,
) -> Result<usize> {
    if let [segment] = list {
        // SAFETY: By the requirements of this function, the page of a filled entry.
        let page = unsafe { ringbar_page_to_phys(page_of(segment)) };
        // SAFETY: By the requirements of this function; the memory is RAM, from this page on.
        let address = unsafe {
            bindings::dma_map_phys(
                device,
                page + u64::from(segment.offset),
                segment.length as usize,
                direction.into(),
                bindings::DMA_ATTR_NO_WARN as c_ulong,
            )
        };
        // SAFETY: The result of a mapping for this device.
        if unsafe { ringbar_dma_mapping_error(device, address) } != 0 {
            return Err(EAGAIN);
        }
        segment.dma_address = address;
        #[cfg(CONFIG_NEED_SG_DMA_LENGTH)]
        {
            segment.dma_length = segment.length;
        }
        return Ok(1);
    }
    let mut table = bindings::sg_table {
        sgl: list.as_mut_ptr(),
        nents: 0,
        // CAST: Far below `c_uint::MAX`.
        orig_nents: list.len() as c_uint,
    };
    // SAFETY: By the requirements of this function.
    let ret = unsafe {
        bindings::dma_map_sgtable(
            device,
            &mut table,
            direction.into(),
            bindings::DMA_ATTR_NO_WARN as c_ulong,
        )
    };
    if ret < 0 {
        let error = Error::from_errno(ret);
        // `dma_map_sgtable` (kernel/dma/mapping.c): without room it returns `ENOMEM`, or `EIO` if
        // the failing layer gives no reason (`dma_direct_map_sg`).
        let no_room = error == ENOMEM || error == EIO;
        return Err(if no_room { EAGAIN } else { error });
    }
    Ok(table.nents as usize)
}

/// Removes the mapping of the list. Any context.
///
/// # Safety
///
/// `device` is bound, and [`map`] mapped this list for it, in this direction. The device does not
/// access the pages any more.
#[inline]
pub(super) unsafe fn unmap(
    device: *mut bindings::device,
    list: &mut [Segment],
    direction: DataDirection,
    attributes: c_ulong,
) {
    // SAFETY: By the requirements of this function, in the way of `map`.
    unsafe {
        if let [segment] = list {
            bindings::dma_unmap_phys(
                device,
                segment.dma_address,
                segment.length as usize,
                direction.into(),
                attributes,
            );
        } else {
            bindings::dma_unmap_sg_attrs(
                device,
                list.as_mut_ptr(),
                // CAST: Far below `c_int::MAX`.
                list.len() as c_int,
                direction.into(),
                attributes,
            );
        }
    }
}

/// To whom a mapped list is given.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Cpu,
    Device,
}

/// Gives the pages of the list to the CPU, or back to the device. Any context.
///
/// # Safety
///
/// `device` is bound, and [`map`] mapped this list for it, in this direction.
pub(super) unsafe fn sync(
    device: *mut bindings::device,
    list: &[Segment],
    direction: DataDirection,
    side: Side,
) {
    // SAFETY: By the requirements of this function, in the way of `map`. The functions only read
    // the list.
    unsafe {
        if let [segment] = list {
            let operation = match side {
                Side::Cpu => ringbar_dma_sync_single_for_cpu,
                Side::Device => ringbar_dma_sync_single_for_device,
            };
            operation(
                device,
                segment.dma_address,
                segment.length as usize,
                direction.into(),
            );
        } else {
            let operation = match side {
                Side::Cpu => ringbar_dma_sync_sg_for_cpu,
                Side::Device => ringbar_dma_sync_sg_for_device,
            };
            operation(
                device,
                list.as_ptr().cast_mut(),
                // CAST: Far below `c_int::MAX`.
                list.len() as c_int,
                direction.into(),
            );
        }
    }
}
