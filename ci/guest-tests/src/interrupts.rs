// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Parses `/proc/interrupts`.

/// An interrupt of `/proc/interrupts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Number, as in `/proc/irq`.
    pub number: u32,
    /// Interrupts so far on each online CPU, in the order of the CPUs.
    pub counts: Vec<u64>,
    /// Interrupt controller and trigger, for example `PCI-MSIX-0000:00:03.0 0-edge`.
    pub kind: String,
    /// Name of the handler.
    pub name: String,
}

impl Interrupt {
    /// The sum over all CPUs.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// The interrupts with one handler, whose name begins with `name`.
pub fn of_handler(table: &str, name: &str) -> Vec<Interrupt> {
    let Some((cpus, lines)) = split(table) else {
        return Vec::new();
    };
    lines
        .filter_map(|line| parse(line, cpus))
        .filter(|interrupt| interrupt.name.starts_with(name))
        .collect()
}

fn parse(line: &str, cpus: usize) -> Option<Interrupt> {
    let (number, rest) = line.split_once(':')?;
    let words: Vec<_> = rest.split_ascii_whitespace().collect();
    let (counts, words) = words.split_at_checked(cpus)?;
    let (name, kind) = words.split_last()?;
    Some(Interrupt {
        number: number.trim().parse().ok()?,
        counts: counts.iter().map_while(|word| word.parse().ok()).collect(),
        kind: kind.join(" "),
        name: (*name).to_owned(),
    })
}

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
    fn lines_are_taken_apart() {
        let found = of_handler(TABLE, "ringbar");
        assert_eq!(found.len(), 2);
        let expected = Interrupt {
            number: 24,
            counts: vec![1200, 34],
            kind: "PCI-MSIX-0000:00:03.0 0-edge".into(),
            name: "ringbar0".into(),
        };
        assert_eq!(found[0], expected);
        assert_eq!(found[1].total(), 11);
        assert_eq!(of_handler(TABLE, "Non"), [], "no number");
        assert_eq!(of_handler("", "ringbar"), []);
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
