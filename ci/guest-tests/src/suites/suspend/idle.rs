// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Suspend to idle. QEMU does not know of it: the harness reads the console and presses
//! the power button.

use std::fs;

use super::power::{set, suspend};
use crate::case::{During, Verdict};
use crate::check;
use crate::fixtures::driver::modprobe;

/// Settings that make the kernel report a suspend on its console, each with its value.
/// The last one increases the output most, so the others come first.
const SETTINGS: [(&str, &str); 3] = [
    ("/sys/module/printk/parameters/console_suspend", "N"),
    ("/sys/power/pm_debug_messages", "1"),
    ("/proc/sys/kernel/printk", "8"),
];

/// Enables messages about a suspend on the console, until dropped.
struct ConsoleMessages {
    before: Vec<(&'static str, String)>,
}

impl ConsoleMessages {
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

impl Drop for ConsoleMessages {
    fn drop(&mut self) {
        for (path, value) in self.before.iter().rev() {
            if let Err(stop) = set(path, value.trim()) {
                eprintln!("{stop:?}");
            }
        }
    }
}

/// Suspends until the power button is pressed.
pub(super) fn sleep() -> Verdict {
    // The driver of the power button.
    check!(modprobe(&["button"])?, "modprobe button failed");
    let _console = ConsoleMessages::on()?;
    suspend("freeze")
}
