// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note

//! The interface of Ringbar's driver to programs: map selectors, `ioctl` numbers,
//! structures, events.
//!
//! The driver compiles the same file [`ringbar`] into the kernel module, so that file uses
//! only `core` and stays within the kernel's Rust version. C programs include `ringbar.h`,
//! which `tests/header.rs` compares with it. [`linux_aio`] has what programs need for Linux AIO.

#![forbid(unsafe_code)]
#![no_std]

pub mod linux_aio;
pub mod ringbar;

pub use ringbar::*;
