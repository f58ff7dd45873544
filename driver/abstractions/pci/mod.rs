// SPDX-License-Identifier: GPL-2.0

//! PCI devices: BARs, interrupts, sleep of the system, binding and unbinding.

pub(crate) mod device;
pub(crate) mod enable;
pub(crate) mod irq;
pub(crate) mod power;
pub(crate) mod revocable;
pub(crate) mod take_over;
