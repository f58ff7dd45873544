// SPDX-License-Identifier: GPL-2.0

//! Requests on their way through a queue.
//!
//! | module | contents | uses |
//! |---|---|---|
//! | [`buffers`] | memory shared with the device: descriptors, header, status, pages | |
//! | [`split`] | a read or write call of several requests | `buffers` |
//! | [`completion`] | the value that notifies the caller of a request | `buffers`, `split` |
//! | [`slot`] | memory and state of one request, allocated at probe | `buffers`, `completion` |
//! | [`poll_policy`] | whether to busy-poll, from earlier results; pure | |
//! | [`progress`] | whether a device is stuck; pure | |
//! | [`state`] | the queue, and the data behind its lock | `slot`, `poll_policy`, `progress` |
//! | [`request`] | a slot while a submitter prepares it | `state` |
//! | [`reap`] | takes used entries and completes their requests | `state` |
//! | [`acquire`] | acquires slots | `request`, `reap` |
//! | [`busy_poll`] | submits a request and busy-polls for its completion | `request`, `reap` |
//! | [`submit`] | submits requests | `busy_poll`, `reap` |
//! | [`lifecycle`] | freezes, stops and restarts a queue | `reap`, `submit` |

pub(crate) mod acquire;
pub(crate) mod buffers;
mod busy_poll;
pub(crate) mod completion;
pub(crate) mod lifecycle;
pub(crate) mod poll_policy;
pub(crate) mod progress;
pub(crate) mod reap;
pub(crate) mod request;
pub(crate) mod slot;
pub(crate) mod split;
pub(crate) mod state;
pub(crate) mod submit;
