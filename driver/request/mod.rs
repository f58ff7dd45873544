// SPDX-License-Identifier: GPL-2.0

//! Requests on their way through a queue.
//!
//! - [`slot`]: everything one request needs, allocated at probe.
//! - [`acquired`]: a slot while a submitter prepares it.
//! - [`caller`]: whose request it is, until a queue has taken it.
//! - [`operation`]: a read or write call that takes several requests.
//! - [`queue`]: hands out slots and gives them to the device.
//! - [`polling`]: whether to look for the end of a request, and doing so.
//! - [`completion`]: takes them back, ends requests.
//! - [`lifecycle`]: freezing, stopping and restarting a queue.
//! - [`event`]: what the device says unasked.

pub(crate) mod acquired;
pub(crate) mod caller;
pub(crate) mod completion;
pub(crate) mod event;
pub(crate) mod lifecycle;
pub(crate) mod operation;
pub(crate) mod polling;
pub(crate) mod queue;
pub(crate) mod slot;
