// SPDX-License-Identifier: GPL-2.0

//! Requests on their way through a queue.
//!
//! - [`slot`]: everything one request needs, allocated at probe.
//! - [`request`]: a slot while a submitter prepares it.
//! - [`caller`]: whose request it is, until a queue has taken it.
//! - [`split`]: a read or write call that takes several requests.
//! - [`state`]: hands out slots and gives them to the device.
//! - [`polling`]: whether to look for the end of a request, and doing so.
//! - [`completion`]: takes them back, ends requests.
//! - [`lifecycle`]: freezing, stopping and restarting a queue.

pub(crate) mod caller;
pub(crate) mod completion;
pub(crate) mod lifecycle;
pub(crate) mod polling;
pub(crate) mod request;
pub(crate) mod slot;
pub(crate) mod split;
pub(crate) mod state;
