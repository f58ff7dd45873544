// SPDX-License-Identifier: GPL-2.0

//! VIRTIO over PCI as far as this driver needs it: capabilities, the common
//! configuration, split virtqueues with indirect descriptors.
//!
//! The kernel's own virtio core is not used: where a device has fewer vectors
//! than queues it falls back to INTx, and polling and notification policy are
//! this driver's business.
//!
//! Sections in the comments are those of VIRTIO 1.3.

pub(crate) mod capability;
pub(crate) mod reset;
pub(crate) mod ring;
pub(crate) mod transport;
