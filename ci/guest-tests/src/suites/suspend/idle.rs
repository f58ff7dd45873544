// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Suspend to idle. Only the guest knows that it sleeps: the harness sees it on the
//! console and presses the power button.

use std::fs;

use super::{set, sound};
use crate::case::{During, Verdict};
use crate::check;
use crate::suites::lifecycle::modprobe;

/// Settings by which the kernel says on its console that it goes to sleep, each with its
/// value. The last makes it say the most, so the others come first.
const SETTINGS: [(&str, &str); 3] = [
    ("/sys/module/printk/parameters/console_suspend", "N"),
    ("/sys/power/pm_debug_messages", "1"),
    ("/proc/sys/kernel/printk", "8"),
];

/// The console says when the machine sleeps, until this is dropped.
struct Console {
    before: Vec<(&'static str, String)>,
}

impl Console {
    fn on() -> Verdict<Self> {
        let mut console = Self { before: Vec::new() };
        for (path, value) in SETTINGS {
            let before = fs::read_to_string(path).during(|| format!("reading {path}"))?;
            set(path, value)?;
            console.before.push((path, before));
        }
        Ok(console)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        for (path, value) in self.before.iter().rev() {
            if let Err(stop) = set(path, value.trim()) {
                eprintln!("{stop:?}");
            }
        }
    }
}

/// Sleeps until the power button is pressed.
pub(super) fn sleep() -> Verdict {
    // Whose interrupt it is.
    check!(modprobe(&["button"])?, "modprobe button failed");
    let _console = Console::on()?;
    sound("freeze")
}
