// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio, which knows nothing of the driver, continues across a suspend.

use crate::case::{Context, During, Verdict, eventually};
use crate::check;
use crate::fio::{ENGINES, Fio};

/// Run time of fio, without the time of the suspend. fio's other clock continues during a
/// suspend.
const TIME: [&str; 3] = [
    "--time_based=1",
    "--runtime=5",
    "--clocksource=clock_gettime",
];

/// Number of requests before and after the suspend.
const PROGRESS: u64 = 100;

pub(super) fn continues(context: &Context, sleep: fn() -> Verdict) -> Verdict {
    for engine in ENGINES {
        let during = || format!("fio with {engine}");
        let mut fio = Fio::start(context, engine, &TIME)?;
        let progress = || -> Verdict {
            let before = context.counter("requests")?;
            eventually("requests of fio", || {
                Ok(context.counter("requests")? >= before + PROGRESS)
            })
        };
        progress().during(during)?;
        sleep().during(during)?;
        progress().during(during)?;
        check!(fio.runs()?, "{engine}: it has ended already");
        fio.expect_good_end().during(during)?;
    }
    Ok(())
}
