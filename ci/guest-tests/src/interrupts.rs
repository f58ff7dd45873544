// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/proc/interrupts`.

/// Adds up the interrupts of all CPUs on the lines whose action contains
/// `name`; `None` where there is no such line.
pub fn count(table: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines();
    let cpus = lines
        .next()?
        .split_ascii_whitespace()
        .filter(|word| word.starts_with("CPU"))
        .count();
    let mut found = None;
    for line in lines.filter(|line| line.contains(name)) {
        let sum: u64 = line
            .split_ascii_whitespace()
            .skip(1)
            .take(cpus)
            .filter_map(|word| word.parse::<u64>().ok())
            .sum();
        *found.get_or_insert(0) += sum;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "           CPU0       CPU1
   0:         36          0   IO-APIC   2-edge      timer
  24:       1200         34  PCI-MSIX-0000:00:03.0   0-edge      ringbar0
  25:          5          6  PCI-MSIX-0000:00:04.0   0-edge      ringbar1
  26:          7          0  PCI-MSIX-0000:00:02.0   0-edge      virtio0-config
 NMI:          0          0   Non-maskable interrupts
";

    #[test]
    fn all_cpus_and_lines_count() {
        assert_eq!(count(TABLE, "ringbar"), Some(1245));
        assert_eq!(count(TABLE, "ringbar1"), Some(11));
    }

    #[test]
    fn a_missing_line_is_told_from_none_counted() {
        assert_eq!(count(TABLE, "nvme"), None);
        assert_eq!(count("", "ringbar"), None);
        assert_eq!(count("  CPU0\n 1: 0 x ringbar\n", "ringbar"), Some(0));
    }
}
