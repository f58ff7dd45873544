// SPDX-License-Identifier: GPL-2.0

//! A driver for a device whose requests are executed one after the other, each while its caller
//! waits: the part that does not depend on what the requests mean. For the drivers of other cards
//! (docs/own-card.md); this driver has many requests in flight, see `queue`.
//!
//! A request is a descriptor chain of queue 0: a header and a source, which the device reads, a
//! destination and a status, which it writes. Source and destination are pages of the caller.
//!
//! | file | contents |
//! |---|---|
//! | [`started`] | a device from probe to unbind: [`StartedDevice`] |
//! | [`hardware`] | registers, queue, and the request in flight: [`Hardware::run`] |
//! | [`pages`] | the memory of a caller, pinned: [`pages::pin`], [`pages::Pages::run`] |
//!
//! [`Hardware::run`]: hardware::Hardware::run

pub(crate) mod hardware;
pub(crate) mod pages;
pub(crate) mod started;

pub(crate) use started::{
    Device,
    StartedDevice, //
};
