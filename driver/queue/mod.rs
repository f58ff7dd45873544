// SPDX-License-Identifier: GPL-2.0

//! Requests on their way through a queue.
//!
//! | module | what is in it | uses |
//! |---|---|---|
//! | [`buffers`] | what a request and the device share: descriptors, header, status, pages | |
//! | [`split`] | a read or write call that takes several requests | `buffers` |
//! | [`completion`] | who is told when a request has ended | `buffers`, `split` |
//! | [`slot`] | everything one request needs, allocated at probe | `buffers`, `completion` |
//! | [`poll_policy`] | whether to busy-poll, from what happened before; pure | |
//! | [`progress`] | whether a device is stuck; pure | |
//! | [`state`] | the queue and what its lock protects | `slot`, `poll_policy`, `progress` |
//! | [`request`] | a slot while a submitter prepares it | `state` |
//! | [`reap`] | takes requests back from the device | `state` |
//! | [`acquire`] | hands out slots | `request`, `reap` |
//! | [`busy_poll`] | submits a request and busy-polls for its end | `request`, `reap` |
//! | [`submit`] | gives requests to the device | `busy_poll`, `reap` |
//! | [`lifecycle`] | freezes, stops and restarts a queue | `reap`, `submit` |

pub(crate) mod acquire;
pub(crate) mod buffers;
mod busy_poll;
pub(crate) mod completion;
pub(crate) mod lifecycle;
pub(crate) mod poll_policy;
mod progress;
pub(crate) mod reap;
pub(crate) mod request;
pub(crate) mod slot;
pub(crate) mod split;
pub(crate) mod state;
pub(crate) mod submit;
