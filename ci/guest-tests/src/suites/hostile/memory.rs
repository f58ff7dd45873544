// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of which the guest physical address is known, and addresses where there is none.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::case::{During, Stop, Verdict};
use crate::check;
use crate::sys::{PAGE, Region};

/// Size of a huge page. The kernel does not move one of the pool, and it is contiguous.
pub(super) const BYTES: usize = 2 << 20;

/// Number of huge pages in the pool.
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Entry of `/proc/self/pagemap`: the page is present; number of the page frame.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// A huge page, given back when dropped.
pub(super) struct Memory {
    region: Region,
    /// Guest physical address.
    pub(super) address: u64,
    /// The first address behind all of the guest's memory.
    pub(super) end_of_ram: u64,
}

impl Memory {
    pub(super) fn new() -> Verdict<Self> {
        fs::write(POOL, "1").during(|| format!("writing {POOL}"))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let region = Region::anonymous_with(BYTES, protection, libc::MAP_HUGETLB)
            .during(|| "mapping a huge page".into())?;
        region.fill(0, BYTES, 0);
        Ok(Self {
            address: physical(&region)?,
            end_of_ram: end_of_ram()?,
            region,
        })
    }

    pub(super) fn store(&self, offset: usize, bytes: &[u8]) {
        self.region.store(offset, bytes);
    }

    pub(super) fn load16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.region.load_into(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Address for the device of the byte at an offset.
    pub(super) const fn at(&self, offset: usize) -> u64 {
        self.address + offset as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // It leaves the pool once it is unmapped.
        let _ = fs::write(POOL, "0");
    }
}

fn physical(region: &Region) -> Verdict<u64> {
    let path = "/proc/self/pagemap";
    let pagemap = File::open(path).during(|| format!("opening {path}"))?;
    let mut entry = [0; 8];
    let place = (region.address() / PAGE * entry.len()) as u64;
    pagemap
        .read_exact_at(&mut entry, place)
        .during(|| format!("reading {path}"))?;
    let entry = u64::from_le_bytes(entry);
    check!(
        entry & PRESENT != 0 && entry & FRAME != 0,
        "{path} has no address: {entry:#x}"
    );
    Ok((entry & FRAME) * PAGE as u64)
}

/// The end of the last memory and of what directly follows it: the firmware keeps tables there, in
/// memory that is reserved.
fn end_of_ram() -> Verdict<u64> {
    let path = "/proc/iomem";
    let text = fs::read_to_string(path).during(|| format!("reading {path}"))?;
    end_of_memory(&text).ok_or_else(|| Stop::Failed(format!("{path} has no memory")))
}

fn end_of_memory(iomem: &str) -> Option<u64> {
    // Resources within others are indented.
    let ranges = iomem.lines().filter(|line| !line.starts_with(' '));
    let ranges: Vec<(u64, u64, &str)> = ranges
        .filter_map(|line| {
            let (range, name) = line.split_once(" : ")?;
            let (first, last) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(first)?, number(last)?, name))
        })
        .collect();
    let memory = ranges.iter().filter(|(_, _, name)| *name == "System RAM");
    let mut end = memory.map(|(_, last, _)| last + 1).max()?;
    while let Some((_, last, _)) = ranges.iter().find(|(first, ..)| *first == end) {
        end = last.checked_add(1)?;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_firmware_are_memory() {
        let iomem = "00001000-0009fbff : System RAM\n00100000-3ffdbfff : System RAM\n  \
                     01000000-01ffffff : Kernel code\n3ffdc000-3fffffff : Reserved\n\
                     b0000000-bfffffff : PCI MMCONFIG 0000\n";
        assert_eq!(end_of_memory(iomem), Some(0x4000_0000));
        assert_eq!(
            end_of_memory("00100000-3fffffff : System RAM\n"),
            Some(0x4000_0000)
        );
        assert_eq!(end_of_memory("b0000000-bfffffff : Reserved\n"), None);
    }
}
