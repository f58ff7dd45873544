// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device over vhost-user: the virtqueues of a guest, processed outside the virtual
//! machine monitor.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | [`Connection`]: one virtual machine monitor, from accept to hang-up |
//! | `backend` | the device as a backend of the `vhost-user-backend` crate |
//! | `vring` | a vring of that crate that forwards to a queue of the engine |
//! | `descriptors` | kick descriptors as doorbells |
//! | `shared_memory` | requests to the monitor to map the device's memory |
//! | `memory` | the monitor's memory table without the device's own memory |
//! | `memory_watch` | timeout for the memory table at a start |
//!
//! # Threads of a connection
//!
//! One thread handles the monitor's messages; the whole virtual machine waits while it handles
//! one. The engine's workers process the queues; a message about a queue waits for one step of
//! one request. Each request to map has a thread that waits for the monitor's reply.
//!
//! # Chosen features
//!
//! The backend offers the features that QEMU's `vhost-user-test-device-pci` and the crates
//! implement correctly. It does not offer `RING_RESET` (QEMU offers it to the driver and does
//! not forward it), `RING_PACKED` and `ACCESS_PLATFORM` (the crates do not implement them), nor
//! the protocol features `STATUS` (the crates close the connection) and `CONFIGURE_MEM_SLOTS`
//! (QEMU 11.1 crashes at the start after a reset).

#![forbid(unsafe_code)]

mod backend;
pub mod connection;
mod descriptors;
pub mod error;
mod memory;
mod memory_watch;
mod shared_memory;
mod vring;

pub use connection::Connection;
pub use error::Error;

/// Greatest number of queues on this transport: kick and call messages have 8 bits for the
/// index of a queue.
pub const MAX_QUEUES: u16 = 256;
