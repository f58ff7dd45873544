// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Virtqueues of any device over any transport.
//!
//! A transport gives the engine what its messages say: guest memory, the setup of a queue,
//! where a doorbell comes from and an interrupt goes to. A [`DeviceModel`] gives requests
//! their meaning. The engine does what lies between: it takes descriptor chains from the
//! available ring, submits them, writes used entries, and decides when to poll, when to
//! sleep and when to interrupt.
//!
//! | module | holds |
//! |---|---|
//! | [`engine`] | [`Engine`]: the entry point, and the handle of a queue for transports |
//! | [`model`] | [`DeviceModel`]: what a device is |
//! | [`request`] | [`Request`]: a descriptor chain, completed exactly once |
//! | [`chain`] | reading a descriptor chain out of guest memory |
//! | [`doorbell`], [`interrupt`] | how driver and device notify each other |
//! | [`counters`], [`latency`] | what the queues have done, and how long it took |
//! | [`fault`] | why a queue is broken |
//! | [`injection`] | faults of queues on demand |
//! | `testing` | a driver, for tests of devices and transports |
//! | `worker` | a thread with its queues: poll, process, sleep |
//! | `queue` | one queue, owned by its worker |
//! | `in_flight` | entries that were taken and are not used |
//! | [`record`] | the same, in memory that outlives the process |
//! | `ring` | the rings in guest memory |
//! | `mailbox`, `sleeper` | how other threads reach a worker |
//! | `polling`, `backoff`, `moderation` | when to poll and when to delay an interrupt |
//!
//! # Who owns what
//!
//! A worker owns its queues; nothing about a queue is behind a lock. Transports change a
//! queue by mail, which its worker reads before each request. So a change waits for one
//! step of one request, never for a batch.
//!
//! ```text
//!            start               pop                    Completed
//!  stopped ───────► running ─────────► request: model ─────────────► used ring
//!     ▲               │                  │      ▲  │                     ▲
//!     │ stop          │ fault            │      │  │ Deferred            │ mailbox
//!     └───────────────┤                  └──────┘  └──► any thread ──────┘
//!                     ▼                  Yielded
//!                  broken
//! ```
//!
//! # What the engine does not do
//!
//! It knows no opcode, no storage, no PCI and no socket. It does not interpret the bytes of
//! a request.

#![forbid(unsafe_code)]

mod backoff;
pub mod chain;
pub mod counters;
pub mod doorbell;
pub mod engine;
pub mod fault;
mod in_flight;
pub mod injection;
pub mod interrupt;
pub mod latency;
mod mailbox;
mod memory;
pub mod model;
mod moderation;
mod polling;
mod queue;
pub mod record;
#[cfg(all(test, not(loom)))]
mod recovery;
pub mod request;
mod ring;
mod sleeper;
#[cfg(feature = "testing")]
pub mod testing;
pub mod threads;
mod worker;

pub use chain::{Buffer, Chain};
pub use counters::{Counters, Counts, QueueCounts};
pub use doorbell::Doorbell;
pub use engine::{Ender, Engine, Options, QueueControl, Stopping};
pub use fault::Fault;
pub use injection::{FaultInjector, Injection};
pub use interrupt::{EventFd, Interrupt, InterruptSlot};
pub use latency::Latencies;
pub use model::DeviceModel;
pub use record::Record;
pub use request::{Request, Submission};
pub use ring::{QueueSetup, StoppedAt};
pub use threads::Threads;
