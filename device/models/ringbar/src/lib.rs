// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Ringbar device: a byte-addressable memory with a DMA engine.
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | [`Device`]: the state that outlives a connection |
//! | [`session`] | [`Session`]: the device on one connection, as the engine runs it |
//! | [`request`] | validation of a descriptor chain as a request |
//! | `executor`, `command` | execution of requests, in steps |
//! | `asynchronous` | execution of requests on an asynchronous storage |
//! | `flusher` | flushes on a thread of their own |
//! | `injection`, `delay` | faults on demand, and the thread of those that delay requests |
//! | `events` | events and their delivery |
//! | `aperture` | state of the mapping of the device memory in the monitor |
//! | [`counters`] | counters |
//! | [`request_queue`] | requests without an engine |
//!
//! # Trust
//!
//! The guest may be hostile, and can change guest memory at any moment. So the device reads
//! each descriptor and each header exactly once, and validates the private copy. It does not
//! interpret the data of a request.
//!
//! A wrong request with a valid place for its status is completed with an error status. A
//! request without one breaks its queue.
//!
//! # Guest memory
//!
//! The transport decides which memory is guest memory. A transport that shows the device
//! memory in the guest's address space (the aperture) excludes that range. So the device
//! completes a request with a data segment in its own aperture with `Invalid`: source and
//! target would be the same bytes at two addresses, and no order of copying is correct for
//! every overlap.
//!
//! # What is elsewhere
//!
//! The model has no threads but the flusher's, and one for requests that a rule delays. Rings, workers and transports are those of
//! `ringbar-engine` and of the transport crates.

#![forbid(unsafe_code)]

mod aperture;
mod asynchronous;
mod command;
pub mod counters;
mod delay;
pub mod device;
pub mod error;
mod events;
mod executor;
#[cfg(test)]
mod fixtures;
mod flusher;
mod injection;
pub mod request;
pub mod request_queue;
mod response;
pub mod session;
mod steps;

pub use counters::{Counts, QueueCounts, RequestCounts};
pub use device::{Device, DeviceOptions, Resumed};
pub use error::Error;
pub use request::{Limits, QueueRole};
pub use request_queue::{Completed, RequestQueue};
pub use session::Session;
