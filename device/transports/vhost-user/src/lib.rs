// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device over vhost-user: the virtqueues of a guest, processed outside the virtual
//! machine monitor.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | [`Connection`]: one virtual machine monitor, from accept to hang-up |
//! | `backend` | the device as the `vhost-user-backend` crate wants it |
//! | `vring` | a vring of that crate, which forwards to a queue of the engine |
//! | `descriptors` | kick and call descriptors as doorbells and interrupts |
//! | `shared_memory` | requests to the monitor to map the device's memory |
//! | `memory` | the monitor's memory table without the device's own memory |
//! | `memory_watch` | says when guest memory is overdue |
//!
//! # Threads of a connection
//!
//! One thread handles the monitor's messages, and holds up the whole virtual machine
//! meanwhile. The engine's workers process the queues; a message that concerns a queue
//! waits for one step of one request. A thread for each request to map waits for the
//! monitor's answer.
//!
//! # Chosen features
//!
//! Offered are those that QEMU's `vhost-user-test-device-pci` and the crates
//! below carry through correctly. Not offered: `RING_RESET` (QEMU offers it on
//! without forwarding it), `RING_PACKED` and `ACCESS_PLATFORM` (not in the
//! crates), the protocol features `STATUS` (the crates close the connection)
//! and `CONFIGURE_MEM_SLOTS` (QEMU 11.1 crashes at the start after a reset).

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

/// Most queues on this transport: kick and call messages have 8 bits for a queue's number.
pub const MAX_QUEUES: u16 = 256;
