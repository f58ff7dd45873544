// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fuzz targets: what a driver, a monitor or a client of the control socket can send to a device,
//! compared with a model of what the device should do.
//!
//! | target | input | compared with |
//! |---|---|---|
//! | [`chain`] | descriptor tables anywhere in guest memory | a naive walk, and which addresses it reads |
//! | [`requests`] | requests of all kinds, byte by byte | the contents of storage and guest memory |
//! | [`two_sided`] | any driver, any device, and the order of what they do | each orderly request completed once, with the right answer |
//! | [`dma_table`] | maps, unmaps and accesses | a list of ranges, byte for byte |
//! | [`server_messages`] | bytes and descriptors of a connection | what each message may cause, and that each is answered once |
//! | [`function_registers`] | accesses to the registers of a function | a model of the registers, and the order of actions |
//! | [`config_space`] | accesses to its configuration space | what can be written, and what must not change |
//! | [`control_commands`] | what a client sends to the control socket | a reader of JSON, the size of the device and its rules for faults |
//! | [`fault_rules`] | texts of rules for faults | the rule that is parsed from what is written of it |
//!
//! A target is a function of bytes that panics if something is wrong. libFuzzer looks for such
//! bytes (`run.sh`, `make fuzz`); the test `corpus` runs the ones in `corpus/`, without it.

#![forbid(unsafe_code)]

pub mod chain;
pub mod config_space;
pub mod control_commands;
pub mod dma_table;
pub mod fault_rules;
pub mod function_registers;
pub mod requests;
pub mod server_messages;
pub mod two_sided;

mod functions;
mod guest;
mod input;
