// SPDX-License-Identifier: GPL-2.0

//! A driver for a device with one queue, whose callers wait for their requests: the part that does
//! not depend on what the requests mean. For the drivers of other cards (docs/own-card.md); this
//! driver has its own, see `queue`.
//!
//! A request is a descriptor chain of queue 0: a header and a source, which the device reads, a
//! destination and a status, which it writes. Source and destination are pages of the caller.
//!
//! | file | contents | uses |
//! |---|---|---|
//! | [`started`] | a device from probe to unbind | |
//! | [`queue`] | the queue and its registers: start, stop, submission | |
//! | [`requests`] | the requests in flight: [`Requests::run`] | `queue`, `started` |
//! | [`pages`] | the memory of a caller, pinned: [`pages::pin`], [`pages::Pages::run`] | `requests` |
//!
//! [`Requests::run`]: requests::Requests::run

pub(crate) mod pages;
pub(crate) mod queue;
pub(crate) mod requests;
pub(crate) mod started;

/// A device whose callers wait for their requests.
pub(crate) type Device = started::Device<requests::Requests>;
/// Such a device from probe to unbind.
pub(crate) type StartedDevice<'bound> = started::StartedDevice<'bound, requests::Requests>;
