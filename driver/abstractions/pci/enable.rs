// SPDX-License-Identifier: GPL-2.0

//! Enabled PCI devices, and bus mastering.
//!
//! C header: [`include/linux/pci.h`](srctree/include/linux/pci.h)

use super::device::{
    as_raw,
    as_raw_device, //
};
use crate::abstractions::dma::range;
use kernel::{
    bindings,
    device::{
        Bound,
        Core, //
    },
    pci,
    prelude::*, //
};

/// An enabled device: it responds to memory accesses. Dropping this disables it, and bus mastering.
///
/// # Invariants
///
/// Owns one count of the device's enable count.
pub(crate) struct Enabled<'bound> {
    device: &'bound pci::Device<Bound>,
    max_segment_bytes: usize,
}

impl<'bound> Enabled<'bound> {
    /// Sets the DMA limits of a VIRTIO device, and then enables memory accesses. May sleep. `EBUSY`
    /// outside of `probe`.
    ///
    /// Does not enable bus mastering: the device may still run with the queues of an earlier kernel,
    /// which executed this one (kexec), and would go on in the memory of this kernel. So a reset
    /// comes first.
    pub(crate) fn new(device: &'bound pci::Device<Core<'_>>) -> Result<Self> {
        // SAFETY: The device is valid; the core sets and clears this field under the device lock,
        // which is held while there is a `Core` device.
        let probed = unsafe { !(*as_raw_device(device)).driver_data.is_null() };
        if probed {
            return Err(EBUSY);
        }
        // SAFETY: The data of the driver is set right after `probe`, before other code can get the
        // device from it, and cleared after the device has been unbound. So this is `probe`.
        let max_segment_bytes = unsafe { range::configure(device)? };
        device.enable_device_mem()?;
        // INVARIANT: `enable_device_mem` has succeeded.
        Ok(Self {
            device,
            max_segment_bytes,
        })
    }

    /// Greatest size of a single segment in bytes, which bounce buffers can make small.
    pub(crate) fn max_segment_bytes(&self) -> usize {
        self.max_segment_bytes
    }
}

impl Drop for Enabled<'_> {
    fn drop(&mut self) {
        // SAFETY: The device is valid, and by the type invariant this count is ours to release.
        unsafe {
            bindings::pci_clear_master(as_raw(self.device));
            bindings::pci_disable_device(as_raw(self.device));
        }
    }
}

/// Enables bus mastering. Calls for the same device must be serialised, or one may be lost. May
/// sleep.
pub(crate) fn enable_bus_mastering(device: &pci::Device<Bound>) {
    // SAFETY: The device is valid.
    unsafe { bindings::pci_set_master(as_raw(device)) };
}

/// Disables bus mastering, whatever the device is doing. Serialised like [`enable_bus_mastering`].
///
/// Returns whether that is certain: the device shows it in its command register, or was removed
/// from the bus. The completion of that read follows all earlier writes of the device (PCI Express
/// Base Specification, 2.4.1).
pub(crate) fn disable_bus_mastering(device: &pci::Device<Bound>) -> bool {
    let mut command: u16 = 0;
    // SAFETY: The device is valid.
    let error = unsafe {
        bindings::pci_clear_master(as_raw(device));
        // CAST: A small constant.
        bindings::pci_read_config_word(as_raw(device), bindings::PCI_COMMAND as c_int, &mut command)
    };
    error != 0 || command == u16::MAX || u32::from(command) & bindings::PCI_COMMAND_MASTER == 0
}
