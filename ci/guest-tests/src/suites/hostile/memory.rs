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

fn end_of_ram() -> Verdict<u64> {
    let path = "/proc/iomem";
    let text = fs::read_to_string(path).during(|| format!("reading {path}"))?;
    text.lines()
        .filter_map(|line| line.strip_suffix(" : System RAM"))
        .filter_map(|range| range.split_once('-'))
        .filter_map(|(_, last)| u64::from_str_radix(last.trim(), 16).ok())
        .max()
        .map(|last| last + 1)
        .ok_or_else(|| Stop::Failed(format!("{path} has no memory")))
}
