// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All data goes through bounce buffers, of which there are few: as where memory is
//! encrypted, or out of the device's reach.

use super::{data, stall};
use crate::case::{Case, Suite};

/// Bytes of all bounce buffers together, as the harness asks the guest's kernel for them:
/// the smallest number that it makes.
pub const BYTES: usize = 256 << 10;

/// The suite.
pub fn suite() -> Suite {
    let moved = data::suite().cases.into_iter().map(|case| Case {
        name: format!("dr10_bounced_{}", case.name),
        ..case
    });
    Suite {
        name: "bounce",
        about: "data by every call through few bounce buffers",
        cases: moved.chain([stall::bounced()]).collect(),
    }
}
