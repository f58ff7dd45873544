// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the Ringbar driver that run in the guest, and the names and expected data of
//! these tests for the harness on the host.
//!
//! | module | what it holds |
//! |---|---|
//! | [`suites`] | the tests |
//! | [`case`] | tests, suites and their results |
//! | [`needs`] | what a suite needs of the harness |
//! | [`ktap`] | runs tests and reports |
//! | [`fixtures`] | what several suites use |
//! | [`method`] | all methods of moving data |
//! | [`fio`] | runs fio |
//! | [`pattern`] | test data |
//! | [`bar_check`] | compares DMA with the map |
//! | [`host`] | client of the harness, which stalls the device or makes it lie |
//! | [`kernel_log`] | reads the kernel log |
//! | [`pins`] | counts pinned pages |
//! | [`memcpy`] | measures copies in memory |
//! | [`canary`] | finds writes to memory that nobody should make |
//! | [`kexec`] | executes another kernel |
//! | [`interrupts`] | reads `/proc/interrupts` |
//! | [`sys`] | raw system calls |

pub mod bar_check;
pub mod canary;
pub mod case;
pub mod fio;
pub mod fixtures;
pub mod host;
pub mod interrupts;
pub mod kernel_log;
pub mod kexec;
pub mod ktap;
pub mod memcpy;
pub mod method;
pub mod needs;
pub mod pattern;
pub mod pins;
pub mod suites;
pub mod sys;
