// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All data goes through bounce buffers, of which there are few: as where memory is
//! encrypted, or out of the device's reach.

use super::{data, stall};
use crate::case::{Case, Context, During, Suite, Verdict};
use crate::fio::{ENGINES, Fio};

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
        cases: moved
            .chain([stall::bounced(), Case::new("dr10_bounced_fio", fio)])
            .collect(),
    }
}

/// More at a time than there are buffers for.
fn fio(context: &Context) -> Verdict {
    for engine in ENGINES {
        let during = || format!("fio with {engine}");
        let mut fio = Fio::start(context, engine, &["--iodepth=32"]).during(during)?;
        fio.expect_good_end().during(during)?;
    }
    Ok(())
}
