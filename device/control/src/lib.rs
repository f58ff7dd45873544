// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket of a device: requests, replies, and a client.
//!
//! A request is a [`Command`] in one line of JSON, in the syntax of the QEMU Machine Protocol
//! (without its greeting and negotiation); so is each reply.
//!
//! | request | reply |
//! |---|---|
//! | `{"execute": "query-device"}` | `{"return": {...}}`, see [`Status`] |
//! | `{"execute": "query-statistics"}` | `{"return": {...}}`, see [`Statistics`] |
//! | `{"execute": "resize", "arguments": {"bytes": N}}` | `{"return": {}}` once the device has that size and the event for the driver is pending |
//! | `{"execute": "add-fault", "arguments": {"rule": "read:nth=3:error=EIO"}}` | `{"return": {"id": N}}`: requests that the driver submits from now on are compared with the rule (`docs/faults.md`) |
//! | `{"execute": "query-faults"}` | `{"return": [{"id": N, "rule": "...", "matches": N, "firings": N}, ...]}` |
//! | `{"execute": "clear-faults", "arguments": {"id": N}}` | `{"return": {"cleared": 1}}`; without `id`, all rules are cleared |
//! | `{"execute": "set-log", "arguments": {"filter": "debug"}}` | `{"return": {}}`: the log has these messages from now on |
//! | `{"execute": "shutdown"}` | `{"return": {}}`; the process then ends as after SIGTERM |
//! | anything else | `{"error": {"desc": "..."}}` |
//!
//! As in that protocol, a request may omit `"arguments": {}`, and the reply to a request with an
//! `id`, which may be any value, has the same `id`. A request has at most [`MAX_REQUEST_BYTES`]
//! bytes and no members but these. A client ignores members of replies that it does not know, so
//! that a later device may have more.
//!
//! | module | holds |
//! |---|---|
//! | [`command`] | commands, each with the type of what it returns |
//! | [`reply`] | what commands return |
//! | [`wire`] | lines: a request as the device reads it, a reply as the client reads it |
//! | [`client`] | [`Client`]: a connection to a device |

#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod reply;
pub mod wire;

pub use client::{Client, ClientError};
pub use command::{Command, Execute};
pub use reply::{Counts, Fault, Histogram, QueueRole, QueueStatistics, Statistics, Status};

/// Greatest length of a request in bytes, with its line feed; far more than a valid one has.
pub const MAX_REQUEST_BYTES: u64 = 4096;

/// Greatest length of a reply in bytes. The longest are statistics: 64 queues with all buckets have
/// 2 MiB.
pub const MAX_REPLY_BYTES: u64 = 16 << 20;
