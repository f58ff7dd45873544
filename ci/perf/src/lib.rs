// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A load generator that costs little itself, for comparing ways of doing I/O.
//!
//! fio takes 1,300 to 2,300 instructions for each transfer, more than a queue in user space
//! may cost in all. Here each engine has the same loop and the same offsets, and everything
//! that is not the transfer is done before the loop begins.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | the options of a run |
//! | [`load`] | the loop |
//! | [`engine`] | the ways of doing I/O |
//! | [`offsets`] | which block is next |
//! | [`memory`] | mapped memory |
//! | [`report`] | the result |
//! | [`ring`] | two processes with the rings of a queue in user space |

pub mod engine;
pub mod load;
pub mod memory;
pub mod offsets;
pub mod options;
pub mod report;
pub mod ring;
