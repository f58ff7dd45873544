// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The card mycard: what its device, its test program and its driver share, and the device.

mod model;
#[path = "../protocol.rs"]
pub mod protocol;
#[path = "../uapi/mycard.rs"]
pub mod uapi;

pub use model::Mycard;
