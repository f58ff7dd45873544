// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The card grabber: what its device, its test program and its driver share, and the device.

mod clock;
mod frames;
mod model;
#[path = "../protocol.rs"]
pub mod protocol;
#[path = "../uapi/grabber.rs"]
pub mod uapi;

pub use model::Grabber;
