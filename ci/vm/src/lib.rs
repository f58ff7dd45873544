// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtual machine with Ringbar devices: starts the device daemons and QEMU, and runs
//! commands in the guest.
//!
//! | module | what it does |
//! |---|---|
//! | [`setup`] | reads the record of `make setup` |
//! | [`vm`] | starts QEMU and the devices |
//! | [`device`] | starts the device daemon |
//! | [`qemu`] | builds QEMU's command line |
//! | [`qmp`] | client of QEMU's monitor |
//! | [`agent`] | client of the guest's PID 1 |
//! | `control` | client of a device's control socket |
//! | `host_port` | executes requests of test programs in the guest |
//! | `waker` | wakes a guest that sleeps |
//! | [`kernel_log`] | finds problems in a kernel log |
//! | [`process`] | child processes, killed when this process ends |
//! | [`temporary`] | temporary directories, removed when this process ends |
//! | [`socket_watch`] | waits for a daemon to listen |
//! | `supervised` | kills and replaces the child of a device with a supervisor |
//! | `terminal` | saves and restores terminal settings |
//!
//! It does not know what runs in the guest: no test, no suite, no benchmark.

pub mod agent;
mod control;
pub mod device;
pub mod error;
mod host_port;
pub mod kernel_log;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod setup;
pub mod socket_watch;
mod supervised;
pub mod temporary;
mod terminal;
pub mod vm;
mod waker;
