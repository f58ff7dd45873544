// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results of the debug kernel's checkers.

use std::time::Duration;

use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::Result;

/// Parameters of the debug kernel.
///
/// - `page_poison`: the kernel fills freed pages with a pattern and checks it when it
///   allocates them again.
/// - `no5lvl`: no five-level page tables. `identify_cpu` clears the capabilities that
///   `pgtable_l5_enabled` tests while it identifies the first processor, and KASAN
///   reports the reads of an interrupt at that moment as wild.
pub const KERNEL_ARGS: [&str; 2] = ["page_poison=1", "no5lvl"];

/// Reports of unreferenced memory (`Documentation/dev-tools/kmemleak.rst`).
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Counters of the DMA API's checker (`Documentation/core-api/dma-api.rst`).
const DMA_API: &str = "/sys/kernel/debug/dma-api";

/// Minimum age of an object that kmemleak reports (`MSECS_MIN_AGE`): a pointer to a
/// younger object may not be stored yet.
const KMEMLEAK_AGE: Duration = Duration::from_millis(5000);

/// Maximum time for a scan.
const SCAN_TIMEOUT: Duration = Duration::from_secs(300);

/// Clears kmemleak's reports. To be called before the driver is loaded, so that earlier
/// leaks are not reported as the driver's.
pub fn prepare(agent: &Agent) -> Result<()> {
    let clear = format!("echo scan > {KMEMLEAK} && echo clear > {KMEMLEAK}");
    agent
        .check(&GuestCommand::shell(&clear), SCAN_TIMEOUT)
        .map(drop)
}

/// Checks that no streaming mapping of the driver is left, and that none was misused. No
/// I/O may be running.
pub fn dma_mappings(agent: &Agent) -> std::result::Result<(), String> {
    let read = |name: &str| {
        agent
            .read_text(&format!("{DMA_API}/{name}"))
            .map_err(|error| error.to_string())
    };
    let disabled = read("disabled")?;
    if disabled.trim() != "N" {
        return Err("the checker ran out of memory and disabled itself".into());
    }
    let errors = read("error_count")?;
    if number(&errors) != Some(0) {
        return Err(format!("number of errors: {}", errors.trim()));
    }
    match streaming(&read("dump")?) {
        (_, Some(line)) => Err(format!("still mapped: {line}")),
        // The rings are mapped while the driver is loaded, so the dump must contain the
        // driver's mappings.
        (0, None) => Err("no mapping of the driver is known to the checker".into()),
        (_, None) => Ok(()),
    }
}

/// The number of the driver's coherent mappings in a dump, and its first streaming
/// mapping.
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

/// Parses a number of debugfs, decimal or hexadecimal.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Unloads the driver and scans for memory leaks.
pub fn unload_and_scan(agent: &Agent) -> std::result::Result<(), String> {
    // kmemleak reports an object when the second scan finds it unchanged and old enough,
    // so the script waits between the scans.
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
