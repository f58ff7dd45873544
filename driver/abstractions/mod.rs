// SPDX-License-Identifier: GPL-2.0

//! Safe interfaces to what the `kernel` crate does not cover yet. All of this
//! driver's `unsafe` code and use of C bindings is here; nothing here knows what
//! Ringbar is.

pub(crate) mod address_space;
mod anon_inode;
mod brand;
pub(crate) mod chardev;
pub(crate) mod debugfs;
pub(crate) mod dma;
pub(crate) mod gate;
mod helpers;
pub(crate) mod iov;
pub(crate) mod irq;
pub(crate) mod kiocb;
pub(crate) mod module;
pub(crate) mod pci;
pub(crate) mod plug;
pub(crate) mod poll;
pub(crate) mod power;
pub(crate) mod privilege;
pub(crate) mod ratelimit;
pub(crate) mod segments;
pub(crate) mod shared_memory;
pub(crate) mod spin;
pub(crate) mod take_over;
pub(crate) mod uring;
pub(crate) mod vma;
pub(crate) mod wait;
pub(crate) mod work;
