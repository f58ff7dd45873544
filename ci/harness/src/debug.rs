// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the checkers of the debug kernel have counted.

use std::time::Duration;

use crate::agent::{Agent, GuestCommand};
use crate::error::Result;

/// Parameters of the debug kernel.
///
/// - Freed pages are filled with a pattern, which the kernel looks at when it hands
///   them out again.
/// - No page tables of five levels: while the kernel identifies the first processor
///   it forgets that it has them (`identify_cpu` clears the capabilities that
///   `pgtable_l5_enabled` goes by), and KASAN takes what an interrupt in that moment
///   reads for wild.
pub const KERNEL_ARGS: [&str; 2] = ["page_poison=1", "no5lvl"];

/// Reports of memory that nothing points to
/// (`Documentation/dev-tools/kmemleak.rst`).
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Counters of the DMA API's checker (`Documentation/core-api/dma-api.rst`).
const DMA_API: &str = "/sys/kernel/debug/dma-api";

/// kmemleak says nothing about objects that are younger, in milliseconds
/// (`MSECS_MIN_AGE`), because a pointer to them may not be stored yet.
const KMEMLEAK_AGE: Duration = Duration::from_millis(5000);

/// How long a scan may take.
const SCAN_TIMEOUT: Duration = Duration::from_secs(300);

/// To be called before the driver is loaded: what was leaked by then is not
/// held against it.
pub fn prepare(agent: &Agent) -> Result<()> {
    let clear = format!("echo scan > {KMEMLEAK} && echo clear > {KMEMLEAK}");
    agent
        .check(&GuestCommand::shell(&clear), SCAN_TIMEOUT)
        .map(drop)
}

/// Whether every streaming mapping of the driver was taken down, and none ever
/// misused. No I/O may be running.
pub fn dma_mappings(agent: &Agent) -> std::result::Result<(), String> {
    let read = |name: &str| {
        agent
            .read_text(&format!("{DMA_API}/{name}"))
            .map_err(|error| error.to_string())
    };
    let disabled = read("disabled")?;
    if disabled.trim() != "N" {
        return Err("the checker ran out of memory and switched itself off".into());
    }
    let errors = read("error_count")?;
    if number(&errors) != Some(0) {
        return Err(format!("number of errors: {}", errors.trim()));
    }
    match streaming(&read("dump")?) {
        (_, Some(line)) => Err(format!("still mapped: {line}")),
        // The rings are there as long as the driver is, so the dump shows ours.
        (0, None) => Err("no mapping of the driver is known to the checker".into()),
        (_, None) => Ok(()),
    }
}

/// Number of the driver's coherent mappings in a dump, and the first streaming
/// one.
fn streaming(dump: &str) -> (usize, Option<&str>) {
    let mut coherent = 0;
    for line in dump.lines().filter(|line| line.contains("ringbar")) {
        if !line.contains("coherent") {
            return (coherent, Some(line));
        }
        coherent += 1;
    }
    (coherent, None)
}

/// A number as debugfs shows it, decimal or hexadecimal.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Unloads the driver, and looks for memory that it has left behind.
pub fn unload_and_scan(agent: &Agent) -> std::result::Result<(), String> {
    // An object is reported by the second scan that finds it unchanged and old
    // enough: the wait is part of what kmemleak counts as a leak.
    let seconds = KMEMLEAK_AGE.as_secs() + 1;
    let script = format!(
        "rmmod ringbar && echo scan > {KMEMLEAK} && sleep {seconds} && echo scan > {KMEMLEAK}"
    );
    let text = |result: Result<String>| result.map_err(|error| error.to_string());
    text(agent.check(&GuestCommand::shell(&script), SCAN_TIMEOUT))?;
    let leaks = text(agent.read_text(KMEMLEAK))?;
    if leaks.trim().is_empty() {
        Ok(())
    } else {
        Err(leaks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_mappings_are_told_from_coherent_ones() {
        let coherent = "ringbar 0000:00:02.0 coherent idx 4 P=7f000 D=7f000 L=1000 cln=0x1 DMA_BIDIRECTIONAL dma map error check not applicable\n";
        let other = "virtio-pci 0000:00:03.0 scather-gather idx 1 P=1 D=1 L=1 DMA_TO_DEVICE\n";
        let ours = "ringbar 0000:00:02.0 scather-gather idx 9 P=5000 D=5000 L=1000 DMA_TO_DEVICE\n";
        assert_eq!(
            streaming(&format!("{coherent}{other}{coherent}")),
            (2, None)
        );
        assert_eq!(
            streaming(&format!("{coherent}{ours}")),
            (1, Some(ours.trim_end()))
        );
    }

    #[test]
    fn numbers_come_in_two_forms() {
        assert_eq!(number("0x00000000\n"), Some(0));
        assert_eq!(number("17\n"), Some(17));
        assert_eq!(number("0x1f"), Some(31));
        assert_eq!(number("many"), None);
    }
}
