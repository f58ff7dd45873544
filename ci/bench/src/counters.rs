// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters of the guest's kernel and driver.

use std::time::Duration;

use ringbar_guest_tests::interrupts;
use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::{Error, Result};

/// Directory of the driver's counters in debugfs, with one directory for each
/// device.
const DRIVER_COUNTERS: &str = "/sys/kernel/debug/ringbar";

/// Counters of the first device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Interrupts on the device's vectors, summed over all CPUs, as the kernel counts
    /// them.
    pub interrupts: u64,
    /// Doorbells that the driver has rung.
    pub doorbells: u64,
}

impl Counters {
    /// Reads the counters.
    pub fn read(agent: &Agent) -> Result<Self> {
        let table = agent.read_text("/proc/interrupts")?;
        let interrupts = interrupts::count(&table, "ringbar").ok_or_else(|| Error::Guest {
            what: "looking for the driver's interrupt".into(),
            message: "no line of /proc/interrupts names ringbar".into(),
        })?;
        let doorbells = doorbells(agent)?;
        Ok(Self {
            interrupts,
            doorbells,
        })
    }

    /// The difference to an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
            doorbells: self.doorbells.saturating_sub(earlier.doorbells),
        }
    }
}

/// Doorbells that the driver has rung on the first device.
fn doorbells(agent: &Agent) -> Result<u64> {
    let list = GuestCommand::new("ls").args([DRIVER_COUNTERS]);
    let devices = agent.check(&list, Duration::from_secs(30))?;
    let device = devices.lines().next().ok_or_else(|| Error::Guest {
        what: format!("listing {DRIVER_COUNTERS}"),
        message: "there is no device".into(),
    })?;
    let path = format!("{DRIVER_COUNTERS}/{device}/doorbells");
    let text = agent.read_text(&path)?;
    text.trim()
        .parse()
        .map_err(|_| Error::Protocol(format!("{path} holds {text:?}")))
}

/// Interrupts with these numbers, summed over all CPUs, as the kernel counts them.
pub fn interrupts_numbered(agent: &Agent, numbers: &[u32]) -> Result<u64> {
    let table = agent.read_text("/proc/interrupts")?;
    Ok(interrupts::count_numbers(&table, numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_go_below_zero() {
        let early = Counters {
            interrupts: 5,
            doorbells: 7,
        };
        let late = Counters {
            interrupts: 8,
            doorbells: 3,
        };
        assert_eq!(
            late.since(early),
            Counters {
                interrupts: 3,
                doorbells: 0
            }
        );
    }
}
