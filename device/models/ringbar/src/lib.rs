// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Ringbar device: a byte-addressable memory with a DMA engine.
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | [`Device`]: what outlives a connection |
//! | [`session`] | [`Session`]: the device on one connection, as the engine runs it |
//! | [`request`] | validating a chain as a request |
//! | `executor`, `command` | executing requests, step by step |
//! | `asynchronous` | executing requests while nobody waits for the storage |
//! | `flusher` | making data durable beside the queues |
//! | `events` | events and their delivery |
//! | `aperture` | whether the shared memory region shows the device memory |
//! | [`counters`] | what the device has done |
//! | [`request_queue`] | requests without an engine |
//!
//! # Trust
//!
//! Everything in guest memory is written by somebody who may be hostile and may
//! change it at any moment. Each descriptor and each header is therefore read
//! exactly once, and what was validated is the private copy. The data of a
//! request is not interpreted at all.
//!
//! A request that is wrong but has a valid place for its status is answered
//! with that status. One that cannot be answered breaks its queue.
//!
//! # Guest memory
//!
//! "Guest memory" is what the transport passes as such. A transport that shows
//! the device memory itself in the guest's address space (the aperture) leaves
//! that range out, so that a data segment inside the device's own aperture is
//! answered with `Invalid`: source and target would be the same bytes behind
//! two addresses, where no order of copying is right for every overlap.
//!
//! # What the device does not do
//!
//! It knows no threads but the one that flushes, no rings and no transport.

mod aperture;
mod asynchronous;
mod command;
pub mod counters;
pub mod device;
pub mod error;
mod events;
mod executor;
mod flusher;
pub mod request;
pub mod request_queue;
pub mod session;

pub use counters::Counts;
pub use device::{Device, DeviceOptions};
pub use error::Error;
pub use request::{Limits, QueueRole};
pub use request_queue::{RequestQueue, Served};
pub use session::Session;

use ringbar_engine::Fault;
use ringbar_spec::QueueFault;

/// How the driver is told of a fault of a queue.
pub const fn queue_fault(fault: Fault) -> QueueFault {
    match fault {
        Fault::Chain => QueueFault::Chain,
        Fault::Address => QueueFault::Address,
        Fault::NoAnswer => QueueFault::NoStatus,
        Fault::Ring => QueueFault::Ring,
    }
}
