// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ways of doing I/O.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use crate::memory::Mapping;
use crate::options::Options;

pub mod io_uring;
pub mod libaio;
pub mod memcpy;
pub mod null;
pub mod psync;

/// A way of doing I/O. It owns the buffers, which have numbers from 0 to the depth.
pub trait Engine {
    /// Prepares the transfer between a buffer that is not in use and the block at `offset`.
    fn prepare(&mut self, buffer: u32, offset: u64) -> Result<(), String>;

    /// Submits what was prepared and waits for `min` transfers, which is not more than are in
    /// flight. Appends the buffers of all transfers that are complete.
    fn submit_and_wait(&mut self, min: u32, free: &mut Vec<u32>) -> Result<(), String>;

    /// Number of system calls made by the two functions above.
    fn system_calls(&self) -> u64;
}

/// The file of a run and the buffers.
#[derive(Debug)]
pub struct Target {
    file: Option<File>,
    buffers: Mapping,
    block: usize,
    writes: bool,
}

impl Target {
    /// Opens the file, and fills the buffers, so that no page fault is measured.
    pub fn open(options: &Options) -> Result<Self, String> {
        let writes = options.rw.writes();
        let open = |path: &std::path::PathBuf| {
            OpenOptions::new()
                .read(!writes)
                .write(writes)
                .custom_flags(if options.direct { libc::O_DIRECT } else { 0 })
                .open(path)
                .map_err(|error| format!("{}: {error}", path.display()))
        };
        let file = options.file.as_ref().map(open).transpose()?;
        let block = usize::try_from(options.block).map_err(|error| error.to_string())?;
        let length = block
            .checked_mul(options.depth as usize)
            .ok_or("the buffers are too large")?;
        let buffers = Mapping::private(length)
            .map_err(|error| format!("{length} bytes for the buffers: {error}"))?;
        buffers.fill(0, length, 0x5a);
        Ok(Self {
            file,
            buffers,
            block,
            writes,
        })
    }

    fn file(&self) -> Result<&File, String> {
        self.file.as_ref().ok_or_else(|| "--file is missing".into())
    }

    /// Address of a buffer.
    fn buffer(&self, buffer: u32) -> *mut u8 {
        self.buffers
            .address(buffer as usize * self.block, self.block)
    }

    /// Checks the result of a transfer: a number of bytes, or a negative errno.
    fn check(&self, result: i64) -> Result<(), String> {
        if result == self.block as i64 {
            return Ok(());
        }
        Err(match i32::try_from(-result) {
            Ok(errno) if errno > 0 => {
                format!(
                    "a transfer failed: {}",
                    std::io::Error::from_raw_os_error(errno)
                )
            }
            _ => format!("a transfer ended after {result} of {} bytes", self.block),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::io_uring::IoUringEngine;
    use super::libaio::Libaio;
    use super::memcpy::Memcpy;
    use super::psync::Psync;
    use super::*;
    use crate::load::tests::options;

    const BLOCK: usize = 4096;
    const BLOCKS: usize = 8;

    /// A file whose blocks have their number in each byte.
    fn file() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for block in 0..BLOCKS {
            file.write_all(&[block as u8; BLOCK]).unwrap();
        }
        file
    }

    fn target(path: &Path, arguments: &str) -> (Target, Options) {
        let path = path.display();
        let common = format!("--file {path} --size {} --seconds 1", BLOCK * BLOCKS);
        let options = options(&format!("{arguments} {common}"));
        options.check().unwrap();
        (Target::open(&options).unwrap(), options)
    }

    /// Calls `test` with an engine of each kind, for `rw`, and up to `depth` transfers in flight.
    fn each(path: &Path, rw: &str, mut test: impl FnMut(&str, &mut dyn Engine, u32)) {
        let arguments = |more: &str| format!("--rw {rw} {more}");
        let (psync, _) = target(path, &arguments("--engine psync"));
        test("psync", &mut Psync::new(psync), 1);
        let (libaio, options) = target(path, &arguments("--engine libaio --depth 3"));
        test("libaio", &mut Libaio::new(libaio, &options).unwrap(), 3);
        for fixed in ["", "--fixed"] {
            let more = format!("--engine io_uring --depth 3 {fixed}");
            let (uring, options) = target(path, &arguments(&more));
            test(&more, &mut IoUringEngine::new(uring, &options).unwrap(), 3);
        }
    }

    /// Does one transfer with each buffer, from the block with its number plus `first`.
    fn transfer_all(name: &str, engine: &mut dyn Engine, depth: u32, first: u32) {
        for buffer in 0..depth {
            let offset = u64::from(buffer + first) * BLOCK as u64;
            engine.prepare(buffer, offset).unwrap();
        }
        let mut free = Vec::new();
        while free.len() < depth as usize {
            let remaining = depth - free.len() as u32;
            engine.submit_and_wait(remaining, &mut free).unwrap();
        }
        free.sort_unstable();
        assert_eq!(free, (0..depth).collect::<Vec<_>>(), "{name}");
    }

    #[test]
    fn blocks_are_written_where_the_offset_says() {
        let file = file();
        let mut first = 0;
        each(file.path(), "randwrite", |name, engine, depth| {
            transfer_all(name, engine, depth, first);
            let bytes = std::fs::read(file.path()).unwrap();
            for (index, block) in bytes.chunks(BLOCK).enumerate() {
                let written = (first..first + depth).contains(&(index as u32));
                let byte = if written || index < first as usize {
                    0x5a
                } else {
                    index as u8
                };
                assert!(
                    block.iter().all(|found| *found == byte),
                    "{name}: block {index}"
                );
            }
            assert_eq!(bytes.len(), BLOCK * BLOCKS);
            first += 1;
            assert!(engine.system_calls() > 0);
        });
    }

    #[test]
    fn blocks_are_read_into_the_buffer_that_was_named() {
        let file = file();
        let (libaio, options) = target(file.path(), "--engine libaio --depth 3");
        let buffers = |target: &Target| {
            (0..3 * BLOCK)
                .map(|offset| target.buffers.byte(offset))
                .collect::<Vec<_>>()
        };
        let expected: Vec<_> = (2u8..5).flat_map(|block| [block; BLOCK]).collect();
        let mut engine = Libaio::new(libaio, &options).unwrap();
        transfer_all("libaio", &mut engine, 3, 2);
        assert_eq!(buffers(engine.target()), expected);
        for fixed in ["", "--fixed"] {
            let (uring, options) =
                target(file.path(), &format!("--engine io_uring --depth 3 {fixed}"));
            let mut engine = IoUringEngine::new(uring, &options).unwrap();
            transfer_all("io_uring", &mut engine, 3, 2);
            assert_eq!(buffers(engine.target()), expected, "{fixed}");
            assert_eq!(engine.system_calls(), 1);
        }
        let (psync, _) = target(file.path(), "--engine psync");
        let mut engine = Psync::new(psync);
        transfer_all("psync", &mut engine, 1, 2);
        assert_eq!(engine.target().buffers.byte(BLOCK - 1), 2);
    }

    #[test]
    fn memory_is_copied_in_the_direction_of_the_transfer() {
        for (rw, byte) in [("read", 0xa5), ("write", 0x5a)] {
            let options = options(&format!("--engine memcpy --rw {rw} --seconds 1 --size 64k"));
            let mut engine = Memcpy::new(Target::open(&options).unwrap(), &options).unwrap();
            transfer_all(rw, &mut engine, 1, 3);
            assert_eq!(engine.target().buffers.byte(7), byte);
            assert_eq!(engine.storage().byte(3 * BLOCK), byte);
        }
    }

    #[test]
    fn a_transfer_that_is_short_or_fails_ends_the_run() {
        let file = file();
        each(file.path(), "read", |name, engine, _| {
            engine.prepare(0, (BLOCK * BLOCKS - 512) as u64).unwrap();
            let error = engine.submit_and_wait(1, &mut Vec::new()).unwrap_err();
            assert!(error.contains("512 of 4096 bytes"), "{name}: {error}");
        });
        each(Path::new("/dev/full"), "write", |name, engine, _| {
            engine.prepare(0, 0).unwrap();
            let error = engine.submit_and_wait(1, &mut Vec::new()).unwrap_err();
            // Linux AIO refuses this file.
            let expected = if name == "libaio" {
                "Invalid argument"
            } else {
                "No space left"
            };
            assert!(error.contains(expected), "{name}: {error}");
        });
    }
}
