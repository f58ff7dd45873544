// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults on demand: which requests of a device go wrong, and how.
//!
//! A [`Rule`] is one line of text, for the command line and for the control socket alike. A
//! [`FaultSet`] holds the rules of a device and decides, while the device runs, what happens to a
//! request. `docs/faults.md` explains the rules to their users.
//!
//! | module | holds |
//! |---|---|
//! | [`rule`] | [`Rule`] and its parts, as types and as text |
//! | [`parse`] | from text to a [`Rule`], and why a text is none |
//! | [`set`] | [`FaultSet`]: the rules of a device, with their counters |
//!
//! This crate decides and does nothing: the device model executes the faults of requests, the
//! engine those of queues. There is no thread
//! and no clock here.

#![forbid(unsafe_code)]

pub mod parse;
pub mod rule;
pub mod set;

pub use parse::RuleError;
pub use rule::{Errno, Fault, OPERATIONS, Occasion, QueueEffect, RequestEffect, Rule};
pub use set::{Access, FaultSet, ListedRule, NoSuchRule, RequestFaults, RuleId, TooManyRules};
