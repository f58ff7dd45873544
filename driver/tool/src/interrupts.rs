// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The interrupts of a device, in `/proc/interrupts`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

const TABLE: &str = "/proc/interrupts";

/// An interrupt of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vector {
    /// Number, as in `/proc/irq`.
    pub irq: u32,
    /// Name that the driver gave it.
    pub name: String,
    /// Number of interrupts on all CPUs since the system start, those of other devices on a shared
    /// line included.
    pub total: u64,
}

/// Numbers of the interrupts of a PCI function, whose folder in sysfs is `device`: the messages, or
/// the line without messages.
pub fn numbers(device: &Path) -> Result<BTreeSet<u32>> {
    let fail = |path: PathBuf, source| Error::Kernel { path, source };
    let messages = device.join("msi_irqs");
    if messages.exists() {
        let entries = fs::read_dir(&messages).map_err(|source| fail(messages.clone(), source))?;
        return Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect());
    }
    let line = device.join("irq");
    let text = fs::read_to_string(&line).map_err(|source| fail(line, source))?;
    Ok(text.trim().parse().into_iter().collect())
}

/// The interrupts with these numbers. One that nobody has requested is not in the table.
pub fn read(numbers: &BTreeSet<u32>) -> Result<Vec<Vector>> {
    let table = fs::read_to_string(TABLE).map_err(|source| Error::Kernel {
        path: TABLE.into(),
        source,
    })?;
    Ok(parse(&table, numbers))
}

fn parse(table: &str, numbers: &BTreeSet<u32>) -> Vec<Vector> {
    let mut lines = table.lines();
    let Some(heading) = lines.next() else {
        return Vec::new();
    };
    let cpus = heading.split_ascii_whitespace().count();
    lines
        .filter_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let irq = number.trim().parse().ok()?;
            if !numbers.contains(&irq) {
                return None;
            }
            let words: Vec<_> = rest.split_ascii_whitespace().collect();
            let (counts, words) = words.split_at_checked(cpus)?;
            // Chip and trigger come first; the actions are separated by commas.
            Some(Vector {
                irq,
                name: words.last()?.to_string(),
                total: counts
                    .iter()
                    .filter_map(|count| count.parse::<u64>().ok())
                    .sum(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERRUPTS: &str = "           CPU0       CPU1
   0:         36          0   IO-APIC   2-edge      timer
  24:       1200         34  PCI-MSIX-0000:00:03.0   0-edge      ringbar0-config
  25:          5          6  PCI-MSIX-0000:00:03.0   1-edge      ringbar0-io0
  26:          7          0  PCI-MSIX-0000:00:02.0   0-edge      virtio0-config
 NMI:          0          0   Non-maskable interrupts
 ERR:          0
";

    #[test]
    fn vectors_of_the_device_are_found_by_their_numbers() {
        let found = parse(INTERRUPTS, &BTreeSet::from([24, 25, 99]));
        let vector = |irq, name: &str, total| Vector {
            irq,
            name: name.into(),
            total,
        };
        assert_eq!(
            found,
            [
                vector(24, "ringbar0-config", 1234),
                vector(25, "ringbar0-io0", 11)
            ]
        );
        assert_eq!(parse("", &BTreeSet::from([24])), []);
        assert_eq!(parse("CPU0 CPU1\n 24: 1\n", &BTreeSet::from([24])), []);
    }

    #[test]
    fn numbers_are_those_of_messages_or_of_the_line() {
        let folder = tempfile::tempdir().unwrap();
        assert!(numbers(folder.path()).is_err());
        fs::write(folder.path().join("irq"), "11\n").unwrap();
        assert_eq!(numbers(folder.path()).unwrap(), BTreeSet::from([11]));
        let messages = folder.path().join("msi_irqs");
        fs::create_dir(&messages).unwrap();
        for number in ["30", "29"] {
            fs::write(messages.join(number), "msix\n").unwrap();
        }
        assert_eq!(numbers(folder.path()).unwrap(), BTreeSet::from([29, 30]));
    }
}
