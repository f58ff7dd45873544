// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ringbar over vhost-user: the virtqueues of a guest, served from another
//! process than the virtual machine monitor's.
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | [`Device`]: what outlives a connection |
//! | [`connection`] | [`Connection`]: one virtual machine monitor, from accept to hang-up |
//! | [`counters`] | what the device has done |
//! | `backend` | the device as the `vhost-user-backend` crate wants it |
//! | `exit_events` | the events that end the workers |
//! | `worker` | the queues of one thread |
//! | `queue` | draining a request queue |
//! | `polling` | whether to look for the next request |
//! | `event_queue`, `events` | events and their delivery |
//! | `aperture` | the shared memory region that shows the device memory |
//! | `memory` | guest memory as requests may use it |
//! | `memory_timer` | says when guest memory is overdue |
//! | `ring` | a vring that message handler and worker share |
//!
//! # Threads of a connection
//!
//! One thread handles the monitor's messages. One worker serves the control and
//! the event queue: it may wait for the monitor, so it must not hold up I/O.
//! Further workers serve the I/O queues: one for each queue, but no more than one for
//! each two CPUs.
//!
//! # Chosen features
//!
//! Offered are those that QEMU's `vhost-user-test-device-pci` and the crates
//! below carry through correctly. Not offered: `RING_RESET` (QEMU offers it on
//! without forwarding it), `RING_PACKED` and `ACCESS_PLATFORM` (not in the
//! crates), the protocol features `STATUS` (the crates close the connection)
//! and `CONFIGURE_MEM_SLOTS` (QEMU 11.1 crashes at the start after a reset).

mod aperture;
mod backend;
mod backoff;
pub mod connection;
pub mod counters;
pub mod device;
pub mod error;
mod event_queue;
mod events;
mod exit_events;
mod memory;
mod memory_timer;
mod moderation;
mod polling;
mod queue;
mod ring;
#[cfg(test)]
mod testing;
mod worker;

pub use connection::Connection;
pub use counters::{Counters, Counts};
pub use device::{Device, DeviceOptions};
pub use error::Error;

/// Most I/O queues on this transport. The crate below keeps the queues of a
/// thread in a 64-bit mask, and two queues are control and event.
pub const MAX_IO_QUEUES: u16 = 64 - ringbar_spec::FIRST_IO_QUEUE;
