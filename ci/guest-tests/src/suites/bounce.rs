// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All data goes through a small pool of bounce buffers, as with encrypted memory, or
//! memory that the device cannot address.

use ringbar_fio::Job;

use super::{data, stall};
use crate::case::{Case, Context, During, Suite, Verdict};
use crate::fio::{ENGINES, Fio, verified};
use crate::needs::{Kernels, Needs};

/// Bytes of all bounce buffers together, set on the guest's kernel command line: the
/// smallest pool that the kernel creates.
const BYTES: usize = 256 << 10;

/// Bytes of a bounce buffer (`IO_TLB_SIZE` of `include/linux/swiotlb.h`).
const IO_TLB_SIZE: usize = 2048;

/// The suite.
pub fn suite() -> Suite {
    let moved = data::suite().cases.into_iter().map(|case| Case {
        name: format!("dr10_bounced_{}", case.name),
        ..case
    });
    Suite {
        name: "bounce",
        about: "data by every call through few bounce buffers",
        needs: Needs {
            // One area, so that every CPU can use all bounce buffers.
            kernel_args: vec![format!("swiotlb={},1,force", BYTES / IO_TLB_SIZE)],
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases: moved
            .chain([stall::bounced(), Case::new("dr10_bounced_fio", fio)])
            .collect(),
    }
}

/// More bytes in flight than the bounce buffers hold.
fn fio(context: &Context) -> Verdict {
    for engine in ENGINES {
        let during = || format!("fio with {}", engine.name());
        let job = Job {
            depth: 32,
            ..verified(context, engine)
        };
        let mut fio = Fio::start(&job).during(during)?;
        fio.expect_good_end().during(during)?;
    }
    Ok(())
}
