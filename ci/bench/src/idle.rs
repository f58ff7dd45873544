// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Wake-ups and CPU time of idle devices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::{Error, Result};
use serde::Serialize;

use crate::column::Column;
use crate::statistics::round;
use crate::usage::Usage;

/// Activity during a time without transfers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Idle {
    /// Measured time in seconds.
    pub seconds: f64,
    /// The daemons, by column.
    pub daemons: BTreeMap<Column, IdleDaemon>,
    /// Number of CPUs that the guest kept busy.
    pub guest_cpus: f64,
}

/// Activity of one daemon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IdleDaemon {
    /// Voluntary context switches of all threads per second. Each follows a wake-up.
    pub wakeups_per_second: f64,
    /// CPU time in microseconds per second.
    pub cpu_us_per_second: f64,
}

impl Idle {
    /// Measures for this time; `daemons` are process ids on the host.
    pub fn measure(agent: &Agent, daemons: &[(Column, u32)], time: Duration) -> Result<Self> {
        let usages =
            || -> Result<Vec<Usage>> { daemons.iter().map(|(_, pid)| Usage::of(*pid)).collect() };
        let start = Instant::now();
        let before = usages()?;
        let guest_before = busy_ticks(agent)?;
        // The wait runs in the guest, because the agent's command does no I/O on the
        // devices.
        let wait = GuestCommand::new("sleep").args([time.as_secs_f64().to_string()]);
        agent.check(&wait, time + Duration::from_secs(60))?;
        let guest_ticks = busy_ticks(agent)?.saturating_sub(guest_before);
        let after = usages()?;
        let seconds = start.elapsed().as_secs_f64();

        let daemons = daemons
            .iter()
            .zip(before.iter().zip(after))
            .map(|((column, _), (before, after))| {
                let used = after.since(*before);
                let daemon = IdleDaemon {
                    wakeups_per_second: round(used.waits as f64 / seconds, 2),
                    cpu_us_per_second: round(used.cpu.as_secs_f64() * 1e6 / seconds, 0),
                };
                (*column, daemon)
            })
            .collect();
        Ok(Self {
            seconds: round(seconds, 2),
            daemons,
            guest_cpus: round(guest_ticks as f64 / GUEST_TICKS / seconds, 3),
        })
    }

    /// Wake-ups of a column's daemon.
    pub fn wakeups_per_second(&self, column: Column) -> Option<f64> {
        let daemon = self.daemons.get(&column)?;
        Some(daemon.wakeups_per_second)
    }

    /// Summary in one line.
    pub fn line(&self) -> String {
        let mut line = format!("idle for {} s:", self.seconds);
        for (column, daemon) in &self.daemons {
            line += &format!(
                " {column} {} wake-ups/s, {} us of CPU/s;",
                daemon.wakeups_per_second, daemon.cpu_us_per_second
            );
        }
        line + &format!(" guest {} CPUs busy", self.guest_cpus)
    }

    /// A result with one daemon, for tests.
    #[cfg(test)]
    pub fn example(wakeups_per_second: f64, guest_cpus: f64) -> Self {
        let daemon = IdleDaemon {
            wakeups_per_second,
            cpu_us_per_second: 0.0,
        };
        Self {
            seconds: 5.0,
            daemons: BTreeMap::from([(Column::Ringbar, daemon)]),
            guest_cpus,
        }
    }
}

/// Ticks per second of `/proc/stat`, a constant of the kernel's interface on x86.
const GUEST_TICKS: f64 = 100.0;

/// Number of ticks that the guest's CPUs were busy since boot.
fn busy_ticks(agent: &Agent) -> Result<u64> {
    let table = "/proc/stat";
    let text = agent.read_text(table)?;
    parse_busy(&text).ok_or_else(|| Error::Protocol(format!("{table} has another format")))
}

fn parse_busy(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Option<Vec<u64>> = line
        .split_ascii_whitespace()
        .map(|word| word.parse().ok())
        .collect();
    let fields = fields?;
    // Fields: user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
    // user and nice include guest and guest_nice.
    let [user, nice, system, _, _, irq, softirq, ..] = fields[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_busy() {
        let text = "cpu  10 1 20 5000 300 4 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse_busy(text), Some(41));
        assert_eq!(parse_busy("cpu 1 2 3"), None);
        assert_eq!(parse_busy(""), None);
    }

    #[test]
    fn the_line_names_daemons() {
        assert_eq!(
            Idle::example(0.0, 0.01).line(),
            "idle for 5 s: ringbar 0 wake-ups/s, 0 us of CPU/s; guest 0.01 CPUs busy"
        );
    }
}
