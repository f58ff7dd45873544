// SPDX-License-Identifier: GPL-2.0

//! VIRTIO over PCI, as far as this driver needs it: capabilities, the common configuration, split
//! virtqueues with indirect descriptors.
//!
//! The driver does not use the kernel's own virtio core, for two reasons: if a device has fewer
//! vectors than queues, that core falls back to INTx; and this driver has a polling and
//! notification policy of its own.
//!
//! Sections in the comments are those of VIRTIO 1.3.

pub(crate) mod capability;
mod consistent;
pub(crate) mod isr;
pub(crate) mod reset;
pub(crate) mod ring;
pub(crate) mod transport;
#[allow(
    dead_code,
    reason = "for the drivers of other cards: see docs/own-card.md"
)]
pub(crate) mod virtqueue;
