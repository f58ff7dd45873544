// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Compares DMA with the BAR map.

use crate::case::{Context, During, Verdict, expect_bytes};
use crate::check_eq;
use crate::pattern;
use crate::sys::{self, Region};

/// Number of compared places, spread over the device.
const PLACES: u64 = 64;

/// Bytes compared at each place: a prime.
const LENGTH: usize = 65_539;

/// At each place, writes by DMA and loads through the map, then stores through the map
/// and reads by DMA. Returns the number of bytes compared.
pub fn run(context: &Context) -> Verdict<u64> {
    let file = context.open()?;
    let map = context.map()?;
    let memory = Region::anonymous(LENGTH)?;
    let buffer = memory.buffer(0, LENGTH);
    let last = context.size() - LENGTH as u64;
    let mut compared = 0;
    for place in 0..PLACES {
        // The first place is the start of the device, the last its end.
        let offset =
            last / (PLACES - 1) * place + last % (PLACES - 1) * u64::from(place + 1 == PLACES);
        let at = offset as usize;

        let data = pattern::bytes(place, LENGTH);
        memory.store(0, data);
        let written =
            sys::pwrite(&file, buffer, offset).during(|| format!("pwrite at {offset}"))?;
        check_eq!(written, LENGTH, "bytes written at {offset}");
        let what = format!("map at {offset} after a write by DMA");
        expect_bytes(&map.load(at, LENGTH), data, &what)?;

        let data = pattern::bytes(PLACES + place, LENGTH);
        map.store(at, data);
        let read = sys::pread(&file, buffer, offset).during(|| format!("pread at {offset}"))?;
        check_eq!(read, LENGTH, "bytes read at {offset}");
        let what = format!("read by DMA at {offset} after a store through the map");
        expect_bytes(&memory.load(0, LENGTH), data, &what)?;
        compared += 2 * LENGTH as u64;
    }
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_file_passes() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("device");
        File::create(&path).unwrap().set_len(5_000_011).unwrap();
        let context = Context::new(&path).unwrap();
        assert_eq!(run(&context).unwrap(), 2 * PLACES * LENGTH as u64);
    }
}
