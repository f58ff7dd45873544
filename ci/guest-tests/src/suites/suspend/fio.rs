// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A program that knows nothing of us goes on through a sleep.

use std::process::{Child, Command, Stdio};

use super::{sleep, sleeps};
use crate::case::{Context, During, Verdict, eventually};
use crate::{check, check_eq};

/// Seconds for which fio runs, not counting those in which the machine sleeps.
const SECONDS: u32 = 5;

/// Requests before the machine sleeps, and after it.
const PROGRESS: u64 = 100;

/// A run of fio, which verifies what it writes. It is killed when this is dropped.
struct Fio(Child);

impl Fio {
    fn start(context: &Context, engine: &str) -> Verdict<Self> {
        Command::new("fio")
            .args(["--name=sleep", "--rw=randwrite", "--bs=16k", "--direct=1"])
            .args(["--size=16M", "--iodepth=8", "--time_based=1"])
            .args(["--verify=crc32c", "--verify_backlog=64"])
            // The other one that fio knows goes on while the machine sleeps.
            .arg("--clocksource=clock_gettime")
            .arg(format!("--runtime={SECONDS}"))
            .arg(format!("--ioengine={engine}"))
            .arg(format!("--filename={}", context.path().display()))
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .during(|| "starting fio".into())
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn goes_on(context: &Context) -> Verdict {
    for engine in ["psync", "libaio", "io_uring"] {
        let during = || format!("fio with {engine}");
        let mut fio = Fio::start(context, engine)?;
        let progress = || -> Verdict {
            let before = context.counter("requests")?;
            eventually("requests of fio", || {
                Ok(context.counter("requests")? >= before + PROGRESS)
            })
        };
        progress().during(during)?;
        let slept = sleeps()?;
        sleep("mem").during(during)?;
        check_eq!(sleeps()?, slept + 1, "how often the machine slept");
        progress().during(during)?;
        check!(
            fio.0.try_wait()?.is_none(),
            "{engine}: it has ended already"
        );
        eventually("the end of fio", || Ok(fio.0.try_wait()?.is_some())).during(during)?;
        let status = fio.0.wait()?;
        check!(status.success(), "fio with {engine}: {status}");
    }
    Ok(())
}
