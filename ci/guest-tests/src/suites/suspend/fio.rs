// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A program that knows nothing of us goes on through a sleep.

use crate::case::{Context, During, Verdict, eventually};
use crate::check;
use crate::fio::{ENGINES, Fio};

/// For how long fio runs, not counting while the machine sleeps. The other clock that it
/// knows goes on meanwhile.
const TIME: [&str; 3] = [
    "--time_based=1",
    "--runtime=5",
    "--clocksource=clock_gettime",
];

/// Requests before the machine sleeps, and after it.
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
