// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Starts the Ringbar device and a virtual machine, and runs commands, fio jobs
//! and tests in it.
//!
//! | module | what it does |
//! |---|---|
//! | [`setup`] | reads what `make setup` found and built |
//! | [`device`] | starts the device daemon |
//! | `socket_watch` | waits for a daemon to listen |
//! | [`bench`] | compares the device with others by fio |
//! | [`qemu`] | builds QEMU's command line |
//! | [`vm`] | starts QEMU and ties its parts together |
//! | [`qmp`] | speaks with QEMU |
//! | [`agent`] | speaks with PID 1 of the guest |
//! | [`control`] | speaks with a running device |
//! | [`host_port`] | stops, resumes and resizes devices for test programs in the guest |
//! | [`counters`] | reads what kernel and driver count |
//! | `device_report` | what a device says in the end |
//! | [`fio`] | fio jobs that verify what they move |
//! | [`report`] | what `run` leaves |
//! | [`kernel_log`] | looks for problems in a kernel log |
//! | [`ktap`] | reads test results |
//! | [`refusal`] | that the driver refuses to bind where it could not work |
//! | [`binding`] | that the driver gets its devices, and no others |
//! | [`suite`] | runs a suite of the guest's tests |
//! | [`process`] | processes on the host that never outlive this one |
//! | [`temporary`] | temporary directories, the same |
//! | `terminal` | settings of a terminal that another program changes |
//! | [`size`] | sizes as people write them |
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
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod refusal;
pub mod report;
pub mod setup;
pub mod size;
mod socket_watch;
pub mod suite;
pub mod table;
pub mod temporary;
mod terminal;
pub mod vm;
pub mod waker;
