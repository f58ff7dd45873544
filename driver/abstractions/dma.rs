// SPDX-License-Identifier: GPL-2.0

//! DMA limits of a device.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use super::{
    helpers::ringbar_dma_set_seg_boundary,
    pci::as_raw_device, //
};
use kernel::{
    bindings,
    device::Core,
    dma::{
        Device,
        DmaMask, //
    },
    pci,
    prelude::*,
    sizes::SZ_1G, //
};

/// Tells the DMA layer what a VIRTIO device can do: 64-bit addresses, segments
/// of any alignment that cross any boundary. Returns the size that a single
/// segment may have, which bounce buffers can make small. May sleep.
///
/// To be called in `probe`, before any DMA memory is allocated or mapped.
pub(crate) fn configure(device: &pci::Device<Core<'_>>) -> Result<usize> {
    /// Large enough that merged segments are not cut, small enough for a descriptor's 32 bits.
    const MAX_SEGMENT: u32 = SZ_1G as u32;

    // SAFETY: `probe` has not allocated or mapped anything yet, and nobody else does for this
    // device.
    unsafe {
        device.dma_set_mask_and_coherent(DmaMask::new::<64>())?;
        device.dma_set_max_seg_size(MAX_SEGMENT);
        ringbar_dma_set_seg_boundary(as_raw_device(device), c_ulong::MAX);
    }
    // SAFETY: The device is valid.
    let mapping = unsafe { bindings::dma_max_mapping_size(as_raw_device(device)) };
    Ok(mapping.min(MAX_SEGMENT as usize))
}
