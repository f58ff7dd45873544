// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the Ringbar driver that run inside the guest, and what the harness
//! on the host has to know of them: their names, and the data they leave.
//!
//! | module | what it holds |
//! |---|---|
//! | [`suites`] | the tests |
//! | [`case`] | what a test is |
//! | [`ktap`] | runs tests and reports |
//! | [`method`] | all ways to move data |
//! | [`fio`] | runs fio |
//! | [`pattern`] | test data |
//! | [`bar_check`] | compares DMA with the map |
//! | [`host`] | has the host stall the device, or the device lie |
//! | [`kernel_log`] | what the kernel has said since a moment |
//! | [`pins`] | counts pinned pages |
//! | [`memcpy`] | measures copies in memory |
//! | [`interrupts`] | reads `/proc/interrupts` |
//! | [`sys`] | system calls in raw form |

pub mod bar_check;
pub mod case;
pub mod fio;
pub mod host;
pub mod interrupts;
pub mod kernel_log;
pub mod ktap;
pub mod memcpy;
pub mod method;
pub mod pattern;
pub mod pins;
pub mod suites;
pub mod sys;
#[path = "../../../driver/uapi.rs"]
#[allow(dead_code, reason = "the driver's file, all of which is not used here")]
mod uapi;
#[cfg(test)]
mod uapi_header;
