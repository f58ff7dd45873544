// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Puts the machine to sleep.

use std::fs;
use std::io;
use std::path::Path;

use crate::case::{During, Verdict};
use crate::check_eq;

pub(super) fn set(path: &str, value: &str) -> Verdict {
    fs::write(path, value).during(|| format!("writing {value:?} to {path}"))
}

/// Suspends the machine to this state; returns after the resume.
pub(super) fn sleep(state: &str) -> io::Result<()> {
    fs::write("/sys/power/state", state)
}

/// Limits suspends to a level of `pm_test`, until dropped.
pub(super) struct PmTest;

impl PmTest {
    pub(super) const FILE: &str = "/sys/power/pm_test";

    pub(super) fn new(level: &str) -> Verdict<Self> {
        // Delay at that level, in seconds.
        set("/sys/module/suspend/parameters/pm_test_delay", "0")?;
        set(Self::FILE, level)?;
        Ok(Self)
    }
}

impl Drop for PmTest {
    fn drop(&mut self) {
        if let Err(stop) = set(Self::FILE, "none") {
            eprintln!("{stop:?}");
        }
    }
}

/// Number of suspends since boot.
pub(super) fn suspend_count() -> Verdict<u64> {
    let path = Path::new("/sys/power/suspend_stats/success");
    let text = fs::read_to_string(path).during(|| format!("reading {}", path.display()))?;
    text.trim()
        .parse()
        .map_err(|_| crate::case::Stop::Failed(format!("{} holds {text:?}", path.display())))
}

/// A complete suspend, which the harness ends.
pub(super) fn suspend(state: &str) -> Verdict {
    let count = suspend_count()?;
    sleep(state).during(|| format!("sleep to {state:?}"))?;
    check_eq!(suspend_count()?, count + 1, "how often the machine slept");
    Ok(())
}

/// Suspend to RAM.
pub(super) fn to_ram() -> Verdict {
    suspend("mem")
}
