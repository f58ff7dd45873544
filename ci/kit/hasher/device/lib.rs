// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The card hasher: what its device, its test program and its driver share, and the device.

mod engines;
mod hash;
mod model;
#[path = "../protocol.rs"]
pub mod protocol;
#[path = "../uapi/hasher.rs"]
pub mod uapi;

pub use model::Hasher;
