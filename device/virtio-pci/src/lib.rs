// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A VIRTIO function on the PCI bus (VIRTIO 1.3, 4.1): register accesses in, actions out.

mod action;
mod description;
mod function;

pub use action::{Action, Actions, Queue};
pub use description::{Description, DescriptionError, Identity, Interrupts};
pub use function::{AccessError, Function, Space, Surroundings};

/// Index of the BAR of the MSI-X table; absent without MSI-X.
pub const MSIX_BAR: u8 = 1;

/// Index of the BAR of the VIRTIO registers.
pub const REGISTER_BAR: u8 = 2;

/// Index of the BAR of the shared memory region; absent without a region.
pub const SHARED_BAR: u8 = 4;
