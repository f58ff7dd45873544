// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All data goes through a small pool of bounce buffers, as with encrypted memory, or
//! memory that the device cannot address.

use super::{data, stall};
use crate::case::{Case, Context, During, Suite, Verdict};
use crate::fio::{ENGINES, Fio};

/// Bytes of all bounce buffers together, set on the guest's kernel command line: the
/// smallest pool that the kernel creates.
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

/// More bytes in flight than the bounce buffers hold.
fn fio(context: &Context) -> Verdict {
    for engine in ENGINES {
        let during = || format!("fio with {engine}");
        let mut fio = Fio::start(context, engine, &["--iodepth=32"]).during(during)?;
        fio.expect_good_end().during(during)?;
    }
    Ok(())
}
