// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Holds the connection of a virtual machine monitor while the process that executes requests,
//! the worker, is replaced: after a crash, or by another version of the program.
//!
//! ```text
//!             vhost-user            vhost-user
//!  monitor ◄────────────► supervisor ◄────────────► worker ──► guest memory, eventfds
//!                          │      │                    │
//!                          │      └── hand-over ───────┤
//!                          └──── holds ────► record, storage ◄── maps
//! ```
//!
//! The supervisor forwards messages with their descriptors, and remembers those that make up the
//! state of a back end. A new worker gets these first. What is in flight is in a record in
//! shared memory ([`ringbar_engine::record`]), which the workers write and read.
//!
//! | module | holds |
//! |---|---|
//! | [`supervisor`] | [`supervise`]: the life of the process, and its event loop |
//! | [`handover`] | what supervisor and worker say to each other beside vhost-user |
//! | `serving` | a connection from the worker that waits for it to its end |
//! | `session` | one connection of a monitor |
//! | `state` | the messages that make up the state of a back end |
//! | `back_channel` | requests of the device to the monitor |
//! | `worker` | the process of the worker |
//! | `restarts` | how often and how soon a worker is started again |
//! | `channel`, `message` | vhost-user messages over a socket |
//!
//! # Why it does not crash
//!
//! It reads no guest memory and no request. All its input is messages of bounded length, which
//! it mostly copies. It indexes nothing, unwraps nothing, and allocates by no length of others;
//! the lints below check this. It has no threads of its own.
//!
//! # What it trusts
//!
//! It trusts the monitor and not the worker, which a hostile guest may have taken over: whatever
//! the worker sends, at most this one virtual machine loses its device.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod back_channel;
mod channel;
pub mod handover;
mod message;
mod restarts;
mod serving;
mod session;
mod state;
pub mod supervisor;
mod worker;

pub use supervisor::{Notice, Options, Signals, supervise};
