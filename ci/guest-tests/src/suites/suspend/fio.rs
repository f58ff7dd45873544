// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio, which knows nothing of the driver, continues across a suspend.

use std::time::Duration;

use ringbar_fio::{Extent, Job};

use crate::case::{Context, During, Verdict, eventually};
use crate::check;
use crate::fio::{ENGINES, Fio, verified};

/// Run time of fio, without the time of the suspend.
const TIME: Duration = Duration::from_secs(5);

/// Number of requests before and after the suspend.
const PROGRESS: u64 = 100;

pub(super) fn continues(context: &Context, sleep: fn() -> Verdict) -> Verdict {
    for engine in ENGINES {
        let during = || format!("fio with {}", engine.name());
        let mut fio = Fio::start(&Job {
            extent: Extent::Time(TIME),
            // fio's other clock continues during a suspend.
            further: vec!["--clocksource=clock_gettime".into()],
            ..verified(context, engine)
        })?;
        let progress = || -> Verdict {
            let before = context.counter("requests")?;
            eventually("requests of fio", || {
                Ok(context.counter("requests")? >= before + PROGRESS)
            })
        };
        progress().during(during)?;
        sleep().during(during)?;
        progress().during(during)?;
        check!(fio.runs()?, "{}: it has ended already", engine.name());
        fio.expect_good_end().during(during)?;
    }
    Ok(())
}
