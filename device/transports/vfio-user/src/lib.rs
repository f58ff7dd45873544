// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device over vfio-user: the whole PCI function outside the virtual machine monitor.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | [`Connection`]: one client, from accept to hang-up |
//! | [`options`] | what the PCI function is like |
//! | [`server`] | the protocol: messages in, calls of a back end, replies out |
//! | `function` | that back end: regions and interrupts of the function |
//! | `control` | the thread that changes queues and guest memory |
//! | `interrupts` | vectors, and the line INTx |
//! | [`dma`] | guest memory as the client maps it for DMA |
//!
//! # Threads of a connection
//!
//! ```text
//!             messages                 changes                       mail
//!   client ──────────────► vfio-user ──────────► function-control ──────────► queue-worker ...
//!          ◄──────────────  │     ▲                │                           │
//!               replies     │     └ status reads 0 ┘                           │
//!                           └── doorbell ─────────────────────────────────────►│
//!          ◄───────────────────────────── eventfds ────────────────────────────┘
//! ```
//!
//! The first thread answers accesses to registers at once. What has to wait for the workers (a
//! reset, a start, a change of guest memory) is done by the second, which then answers the message
//! or lets the driver read a status of 0. Only a driver that takes bus mastering away waits for one
//! step of a request, because it has nothing to ask later.
//!
//! # Chosen crates
//!
//! The constants of the protocol come from `vfio-bindings`. The server of the `vfio_user` crate
//! trusts lengths and handles one message at a time, so the server here is our own; its client
//! drives the tests.

pub mod connection;
mod control;
pub mod dma;
pub mod error;
mod function;
mod interrupts;
pub mod options;
pub mod server;

pub use connection::Connection;
pub use error::Error;
pub use options::{FunctionOptions, Identity, Interrupts};
