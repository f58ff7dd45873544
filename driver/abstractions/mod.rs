// SPDX-License-Identifier: GPL-2.0

//! Safe interfaces to what the `kernel` crate does not cover yet. All of this
//! driver's `unsafe` code and use of C bindings is here; nothing here knows what
//! Ringbar is.
//!
//! | folder or file | what is in it |
//! |---|---|
//! | [`fs`] | files: character devices, `kiocb`, iterators, `poll`, plugging |
//! | [`mm`] | address spaces, maps, memory that is shared with user space |
//! | [`dma`] | bus addresses, pinned pages and their mapping |
//! | [`io_uring`] | commands of io_uring |
//! | [`pci`] | BARs, interrupts, system sleep, binding and unbinding |
//! | [`task`] | waiting, busy-polling, work items |
//! | [`module`], [`debugfs`], [`ratelimit`], [`privilege`] | the module and the rest of the kernel |
//! | `brand`, `helpers` | what the others are made with |

mod brand;
pub(crate) mod debugfs;
pub(crate) mod dma;
pub(crate) mod fs;
mod helpers;
pub(crate) mod io_uring;
pub(crate) mod mm;
pub(crate) mod module;
pub(crate) mod pci;
pub(crate) mod privilege;
pub(crate) mod ratelimit;
pub(crate) mod task;
