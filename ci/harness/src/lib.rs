// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Starts the Ringbar device and a virtual machine, and runs commands, fio jobs and tests
//! in the guest.
//!
//! | module | what it does |
//! |---|---|
//! | [`setup`] | reads the record of `make setup` |
//! | [`device`] | starts the device daemon |
//! | `socket_watch` | waits for a daemon to listen |
//! | [`bench`] | compares the device with others by fio |
//! | [`qemu`] | builds QEMU's command line |
//! | [`vm`] | starts QEMU and the devices |
//! | [`qmp`] | client of QEMU's monitor |
//! | [`agent`] | client of the guest's PID 1 |
//! | [`control`] | client of a device's control socket |
//! | [`host_port`] | executes requests of test programs in the guest |
//! | [`counters`] | counters of kernel and driver |
//! | `device_report` | the device's counters at its end |
//! | [`pins`] | numbers of pinned pages |
//! | [`fio`] | fio jobs that verify their data |
//! | [`report`] | report of `run` |
//! | [`kernel_log`] | finds problems in a kernel log |
//! | [`ktap`] | reads test results |
//! | [`refusal`] | tests that the driver refuses an unusable device |
//! | [`binding`] | tests that the driver binds its devices and no others |
//! | [`suite`] | runs a suite of the guest's tests |
//! | [`process`] | child processes, killed when this process ends |
//! | [`temporary`] | temporary directories, removed when this process ends |
//! | `terminal` | saves and restores terminal settings |
//! | [`table`] | tables as text |

pub mod agent;
pub mod bench;
pub mod binding;
pub mod control;
pub mod counters;
pub mod debug;
pub mod device;
mod device_report;
pub mod error;
pub mod fio;
pub mod host_port;
pub mod kernel_log;
pub mod ktap;
pub mod pins;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod refusal;
pub mod report;
pub mod setup;
mod socket_watch;
pub mod suite;
pub mod table;
pub mod temporary;
mod terminal;
pub mod vm;
pub mod waker;
