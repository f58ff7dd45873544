// SPDX-License-Identifier: GPL-2.0

//! DMA limits of a device, and the addresses that it gets.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use crate::abstractions::{
    helpers::ringbar_dma_set_seg_boundary,
    pci::device::as_raw_device, //
};
use core::{
    marker::PhantomData,
    ops::Range, //
};
use kernel::{
    bindings,
    device::Core,
    dma::{
        Coherent,
        Device,
        DmaMask, //
    },
    pci,
    prelude::*,
    ptr::KnownSize,
    sizes::SZ_1G, //
};

/// A range of memory as a device sees it. The memory is allocated or mapped for DMA, and stays so
/// during `'a`.
#[derive(Clone, Copy)]
pub(crate) struct DmaRange<'a> {
    address: u64,
    len: u32,
    writable: bool,
    _memory: PhantomData<&'a ()>,
}

impl<'a> DmaRange<'a> {
    /// # Safety
    ///
    /// The range must be mapped for DMA during `'a`, for the device to write to if
    /// `writable`.
    #[inline]
    pub(in crate::abstractions) unsafe fn new(address: u64, len: u32, writable: bool) -> Self {
        Self {
            address,
            len,
            writable,
            _memory: PhantomData,
        }
    }

    /// The bytes `range` of coherent memory.
    ///
    /// # Panics
    ///
    /// If `range` is not within the memory, like a slice.
    #[inline]
    pub(crate) fn of_coherent<T: KnownSize + ?Sized>(
        memory: &'a Coherent<T>,
        range: Range<usize>,
        writable: bool,
    ) -> Self {
        assert!(range.start <= range.end && range.end <= memory.size());
        Self {
            address: memory.dma_address() + range.start as u64,
            // CAST: An allocation is far below 4 GiB.
            len: range.len() as u32,
            writable,
            _memory: PhantomData,
        }
    }

    /// Address of the first byte on the bus.
    #[inline]
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Number of bytes.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Whether the device may write to it.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }
}

/// Sets the DMA limits of a VIRTIO device: 64-bit addresses, segments of any alignment that cross
/// any boundary. Returns the greatest size of a single segment in bytes, which bounce buffers can
/// make small. May sleep.
///
/// # Safety
///
/// To be called in `probe`: nobody else may allocate or map DMA memory for this device meanwhile.
pub(in crate::abstractions) unsafe fn configure(device: &pci::Device<Core<'_>>) -> Result<usize> {
    /// Large enough that merged segments are not split, small enough for a descriptor's 32 bits.
    const MAX_SEGMENT: u32 = SZ_1G as u32;

    // SAFETY: By the requirement nobody allocates or maps anything for this device now.
    unsafe {
        device.dma_set_mask_and_coherent(DmaMask::new::<64>())?;
        device.dma_set_max_seg_size(MAX_SEGMENT);
        ringbar_dma_set_seg_boundary(as_raw_device(device), c_ulong::MAX);
    }
    // SAFETY: The device is valid.
    let mapping = unsafe { bindings::dma_max_mapping_size(as_raw_device(device)) };
    Ok(mapping.min(MAX_SEGMENT as usize))
}
