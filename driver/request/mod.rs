// SPDX-License-Identifier: GPL-2.0

//! Requests on their way through a queue.
//!
//! - [`slot`]: everything one request needs, allocated at probe.
//! - [`operation`]: a read or write call that takes several requests.
//! - [`queue`]: hands out slots, gives them to the device, takes them back.
//! - [`event`]: what the device says unasked.

pub(crate) mod event;
pub(crate) mod operation;
pub(crate) mod queue;
pub(crate) mod slot;
