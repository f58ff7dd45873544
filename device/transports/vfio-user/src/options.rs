// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Options of the PCI function.

pub use ringbar_virtio_pci::{Identity, Interrupts};
use vfio_bindings::bindings::vfio::{VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};

/// Options of the PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionOptions {
    /// The ids by which drivers find the function.
    pub identity: Identity,
    /// The interrupts that the function has besides INTx.
    pub interrupts: Interrupts,
    /// Greatest number of entries of a queue, a power of two.
    pub queue_size: u16,
}

impl FunctionOptions {
    /// The index of messages in `VFIO_USER_DEVICE_SET_IRQS`, and their number.
    pub(crate) const fn messages(&self) -> Option<(u32, u16)> {
        match self.interrupts {
            Interrupts::MsiX { vectors } => Some((VFIO_PCI_MSIX_IRQ_INDEX, vectors)),
            Interrupts::Msi { vectors } => Some((VFIO_PCI_MSI_IRQ_INDEX, vectors)),
            Interrupts::IntxOnly => None,
        }
    }
}
