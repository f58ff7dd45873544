// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Finds writes to memory that nobody should make: takes most of the free memory, fills it, and
//! compares it later. A device that still knows addresses of an earlier kernel writes there.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::sys::{PAGE, Region};

/// The byte of all memory, which no test stores in a device.
const BYTE: u8 = 0xa5;

/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 20;

/// Options.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Free memory that is left to others, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    leave: usize,

    /// The memory is compared once this pipe (mkfifo) has been opened for writing
    until: PathBuf,
}

/// Fills memory and reports that on standard output; compares it when the pipe has a writer, and
/// returns the number of bytes.
///
/// # Errors
///
/// A byte has changed, or there is no memory or no such pipe.
pub fn run(options: &Options) -> Result<usize, String> {
    let available = available(&fs::read_to_string("/proc/meminfo").map_err(|e| e.to_string())?)?;
    let length = available
        .saturating_sub(options.leave << 20)
        .next_multiple_of(CHUNK);
    let memory = Region::anonymous(length).map_err(|error| format!("{length} bytes: {error}"))?;
    memory.fill(0, length, BYTE);
    println!("{length} bytes filled");
    // Opening it waits for a writer.
    fs::read(&options.until)
        .map_err(|error| format!("waiting for {}: {error}", options.until.display()))?;
    let mut chunk = vec![0; CHUNK];
    let mut pages = Vec::new();
    for offset in (0..length).step_by(CHUNK) {
        memory.load_into(offset, &mut chunk);
        let changed = (0..CHUNK / PAGE).filter(|page| chunk[page * PAGE..][..PAGE] != [BYTE; PAGE]);
        pages.extend(changed.map(|page| offset + page * PAGE));
    }
    match pages.first() {
        None => Ok(length),
        Some(first) => Err(format!(
            "{} of {} pages were written to, the first one at offset {first:#x} with {:02x?}",
            pages.len(),
            length / PAGE,
            &memory.load(*first, 64)
        )),
    }
}

/// The bytes that programs can have without swapping.
fn available(meminfo: &str) -> Result<usize, String> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<usize>().ok())
        .map(|kib| kib << 10)
        .ok_or_else(|| "/proc/meminfo has no MemAvailable".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:        1000 kB\nMemFree: 1 kB\nMemAvailable:     123 kB\n";
        assert_eq!(available(text), Ok(123 << 10));
        assert!(available("MemTotal: 1 kB\n").is_err());
    }
}
