// SPDX-License-Identifier: GPL-2.0

//! Safe interfaces to the parts of the kernel that the `kernel` crate does not cover yet. All
//! `unsafe` code and all uses of C bindings of this driver are here; this code knows nothing of
//! Ringbar.
//!
//! | folder or file | contents |
//! |---|---|
//! | [`fs`] | files: character devices, `kiocb`, iterators, `poll`, plugging |
//! | [`mm`] | address spaces, maps, memory that is shared with user space |
//! | [`dma`] | bus addresses, pinned pages and their mapping |
//! | [`io_uring`] | commands of io_uring |
//! | [`pci`] | BARs, interrupts, system sleep, binding and unbinding |
//! | [`task`] | waiting, busy-polling, work items |
//! | [`index`], [`module`], [`debugfs`], [`sysfs`], [`ratelimit`], [`privilege`] | the module and the rest of the kernel |
//! | [`array_vec`] | values without an allocation |
//! | `brand`, `helpers` | parts of the others |

pub(crate) mod array_vec;
mod brand;
pub(crate) mod debugfs;
pub(crate) mod dma;
pub(crate) mod fs;
mod helpers;
pub(crate) mod index;
pub(crate) mod io_uring;
pub(crate) mod mm;
pub(crate) mod module;
pub(crate) mod pci;
pub(crate) mod privilege;
pub(crate) mod ratelimit;
pub(crate) mod sysfs;
pub(crate) mod task;
