// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Parses `/proc/interrupts`.

/// The sum of the interrupts of all CPUs on the lines whose action contains `name`;
/// `None` without such a line.
pub fn count(table: &str, name: &str) -> Option<u64> {
    let (cpus, lines) = split(table)?;
    let mut found = None;
    for line in lines.filter(|line| line.contains(name)) {
        *found.get_or_insert(0) += sum(line, cpus);
    }
    found
}

/// The sum of the interrupts with these numbers on all CPUs. A number without a line
/// counts as 0.
pub fn count_numbers(table: &str, numbers: &[u32]) -> u64 {
    let Some((cpus, lines)) = split(table) else {
        return 0;
    };
    lines
        .filter(|line| {
            line.split_once(':')
                .and_then(|(number, _)| number.trim().parse().ok())
                .is_some_and(|number: u32| numbers.contains(&number))
        })
        .map(|line| sum(line, cpus))
        .sum()
}

/// Number of CPUs, and the lines after the heading.
fn split(table: &str) -> Option<(usize, std::str::Lines<'_>)> {
    let mut lines = table.lines();
    let cpus = lines
        .next()?
        .split_ascii_whitespace()
        .filter(|word| word.starts_with("CPU"))
        .count();
    Some((cpus, lines))
}

/// The sum of a line over all CPUs.
fn sum(line: &str, cpus: usize) -> u64 {
    line.split_ascii_whitespace()
        .skip(1)
        .take(cpus)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum()
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

    #[test]
    fn numbers_are_whole_numbers_of_lines() {
        assert_eq!(count_numbers(TABLE, &[24]), 1234);
        assert_eq!(count_numbers(TABLE, &[25, 26, 99]), 18);
        assert_eq!(count_numbers(TABLE, &[2, 4]), 0, "24 is neither");
        assert_eq!(count_numbers(TABLE, &[]), 0);
        assert_eq!(count_numbers("", &[0]), 0);
    }
}
