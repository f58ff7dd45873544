// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Moves data by every call, size and alignment, and checks every byte that could have
//! changed.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::case::{Case, Context, During, Suite, Verdict, expect_bytes};
use crate::method::{Direction, Engines, Method, Segments};
use crate::needs::Needs;
use crate::pattern;
use crate::sys::{self, IoVec, PAGE, Region};
use crate::{check, check_eq};

/// The methods that the debug kernel tests every day: each way into the driver, with as many
/// segments as it can have. Debian's kernel tests all.
const ON_DEBUG_KERNEL: [Method; 3] = [
    Method::Vectored(Segments::Three),
    Method::AioVectored(Segments::Three),
    Method::UringFixed,
];

/// Sizes of transfers: around the limits of sectors, pages and segments.
const SIZES: [usize; 12] = [
    1,
    2,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    (64 << 10) + 1,
    1 << 20,
    (1 << 20) + 3,
    4 << 20,
];

/// From this size on, only some combinations of alignments are tested.
const LARGE: usize = 1 << 20;

/// Offsets of the buffer in a page.
const BUFFER_OFFSETS: [usize; 5] = [0, 1, 511, 2048, 4095];

/// Offsets of the range in the device memory; `None` for a range that ends at the end of
/// the device.
const DEVICE_OFFSETS: [Option<u64>; 5] =
    [Some(0), Some(1), Some(4093), Some((3 << 20) + 777), None];

/// Bytes checked on each side of a buffer and of a range in the device.
const GUARD: usize = 64;

/// Value of the bytes around a buffer.
const GUARD_BYTE: u8 = 0x5c;

/// Space between the segments of a buffer.
const GAP: usize = 67;

/// Room for the largest transfer and the bytes around it.
const REGION: usize = (4 << 20) + 4 * PAGE;

/// One test for each call and direction.
pub fn suite() -> Suite {
    let mut cases = Vec::new();
    for method in Method::ALL {
        for direction in [Direction::Write, Direction::Read] {
            let case = Case::new(method.name(direction), move |context| {
                Matrix::new(context)?.run(method, direction)
            });
            cases.push(if ON_DEBUG_KERNEL.contains(&method) {
                case
            } else {
                case.left_to_test_all()
            });
        }
    }
    Suite {
        name: "data",
        about: "data by every call, size and alignment, seen through the BAR and read back",
        needs: Needs::each_transport(),
        cases,
    }
}

/// State that all transfers of a test share.
struct Matrix {
    file: File,
    bar: Region,
    memory: Region,
    engines: Engines,
    size: u64,
    seed: u64,
}

/// One transfer of the matrix.
struct Transfer {
    method: Method,
    size: usize,
    buffer_offset: usize,
    device_offset: u64,
}

impl std::fmt::Display for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes at device offset {}, buffer at offset {} of a page",
            self.size, self.device_offset, self.buffer_offset
        )
    }
}

impl Transfer {
    /// The segments of the buffer: offset in the region, and length.
    fn segments(&self) -> Vec<(usize, usize)> {
        let start = PAGE + self.buffer_offset;
        match self.method.segments() {
            Segments::One => vec![(start, self.size)],
            Segments::Three => {
                // Some segments are empty for the smallest sizes, which is allowed as
                // well.
                let first = self.size.div_ceil(3);
                let second = (self.size - first) / 2 + (self.size - first) % 2;
                let third = self.size - first - second;
                let at = start + first + GAP;
                let last = at + second + GAP;
                vec![(start, first), (at, second), (last, third)]
            }
        }
    }
}

impl Matrix {
    fn new(context: &Context) -> Verdict<Self> {
        let memory = Region::anonymous(REGION)?;
        memory.fill(0, REGION, GUARD_BYTE);
        let engines = Engines::new(&memory).during(|| "setting up the engines".into())?;
        check!(
            context.size() >= 16 << 20,
            "the device is too small for this test"
        );
        Ok(Self {
            file: context.open()?,
            bar: context.map()?,
            memory,
            engines,
            size: context.size(),
            seed: 0,
        })
    }

    fn run(&mut self, method: Method, direction: Direction) -> Verdict {
        for size in SIZES {
            for (i, buffer_offset) in BUFFER_OFFSETS.into_iter().enumerate() {
                for (j, device_offset) in DEVICE_OFFSETS.into_iter().enumerate() {
                    if size >= LARGE && i != j {
                        continue;
                    }
                    let transfer = Transfer {
                        method,
                        size,
                        buffer_offset,
                        device_offset: device_offset.unwrap_or(self.size - size as u64),
                    };
                    self.seed += 1;
                    match direction {
                        Direction::Write => self.write(&transfer),
                        Direction::Read => self.read(&transfer),
                    }
                    .during(|| transfer.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// The checked range of the device: its offset, the number of bytes before the
    /// transfer's, and its length.
    fn guarded_range(&self, transfer: &Transfer) -> (u64, usize, usize) {
        let before = transfer.device_offset.min(GUARD as u64);
        let start = transfer.device_offset - before;
        let end = transfer.device_offset + transfer.size as u64;
        let after = (self.size - end).min(GUARD as u64);
        // All three are at most the size of a transfer and two guards.
        (
            start,
            before as usize,
            (before + after) as usize + transfer.size,
        )
    }

    fn write(&mut self, transfer: &Transfer) -> Verdict {
        let data = pattern::bytes(self.seed, transfer.size);
        let (start, before, length) = self.guarded_range(transfer);
        let background = pattern::bytes(!self.seed, length);
        self.bar.store(start as usize, background);
        let segments = transfer.segments();
        self.fill_buffer(&segments, data);

        self.transfer(Direction::Write, transfer, &segments)?;

        let seen = self.bar.load(start as usize, length);
        let after = before + transfer.size;
        expect_bytes(&seen[before..after], data, "the range, through the BAR")?;
        expect_bytes(&seen[..before], &background[..before], "before the range")?;
        expect_bytes(&seen[after..], &background[after..], "behind the range")?;
        self.expect_buffer(&segments, data, "the source")?;

        let mut back = vec![0; transfer.size];
        self.file
            .read_exact_at(&mut back, transfer.device_offset)
            .during(|| "reading back".into())?;
        expect_bytes(&back, data, "the range, read back")
    }

    fn read(&mut self, transfer: &Transfer) -> Verdict {
        let (start, before, length) = self.guarded_range(transfer);
        let content = pattern::bytes(self.seed, length);
        self.bar.store(start as usize, content);
        let segments = transfer.segments();
        self.fill_buffer(&segments, &vec![0; transfer.size]);

        self.transfer(Direction::Read, transfer, &segments)?;

        let data = &content[before..before + transfer.size];
        self.expect_buffer(&segments, data, "the buffer")?;
        let seen = self.bar.load(start as usize, length);
        expect_bytes(&seen, content, "the device after reading")
    }

    fn transfer(
        &mut self,
        direction: Direction,
        transfer: &Transfer,
        segments: &[(usize, usize)],
    ) -> Verdict {
        let buffers: Vec<IoVec> = segments
            .iter()
            .map(|&(at, length)| self.memory.buffer(at, length))
            .collect();
        let moved = self
            .engines
            .transfer(
                transfer.method,
                direction,
                &self.file,
                &buffers,
                transfer.device_offset,
            )
            .during(|| "the transfer".into())?;
        check_eq!(moved, transfer.size, "bytes moved");
        if transfer.method.uses_position() {
            let position = sys::lseek(&self.file, 0, libc::SEEK_CUR)?;
            let expected = transfer.device_offset + transfer.size as u64;
            check_eq!(position, expected, "position afterwards");
        }
        Ok(())
    }

    /// Stores data in the segments of the buffer, and guard bytes around them.
    fn fill_buffer(&self, segments: &[(usize, usize)], data: &[u8]) {
        let (start, end) = span(segments);
        self.memory.fill(start, end - start, GUARD_BYTE);
        let mut rest = data;
        for &(at, length) in segments {
            let (part, others) = rest.split_at(length);
            self.memory.store(at, part);
            rest = others;
        }
    }

    /// Checks the segments of the buffer and the guard bytes around them.
    fn expect_buffer(&self, segments: &[(usize, usize)], data: &[u8], what: &str) -> Verdict {
        let (start, end) = span(segments);
        let seen = self.memory.load(start, end - start);
        let mut rest = data;
        let mut position = start;
        for (i, &(at, length)) in segments.iter().enumerate() {
            let gap = &seen[position - start..at - start];
            check!(
                gap.iter().all(|&byte| byte == GUARD_BYTE),
                "{what}: a byte before segment {i} has changed"
            );
            let (part, others) = rest.split_at(length);
            let found = &seen[at - start..at - start + length];
            expect_bytes(found, part, &format!("{what}, segment {i}"))?;
            rest = others;
            position = at + length;
        }
        check!(
            seen[position - start..]
                .iter()
                .all(|&byte| byte == GUARD_BYTE),
            "{what}: a byte behind the last segment has changed"
        );
        Ok(())
    }
}

/// From the guard before the first segment to that behind the last.
fn span(segments: &[(usize, usize)]) -> (usize, usize) {
    let first = segments.first().map_or(0, |&(at, _)| at);
    let last = segments.last().map_or(0, |&(at, length)| at + length);
    (first - GUARD, last + GUARD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_add_up_and_stay_within_the_region() {
        for size in SIZES {
            for buffer_offset in BUFFER_OFFSETS {
                for method in [Method::Plain, Method::Vectored(Segments::Three)] {
                    let segments = Transfer {
                        method,
                        size,
                        buffer_offset,
                        device_offset: 0,
                    }
                    .segments();
                    assert_eq!(segments.iter().map(|s| s.1).sum::<usize>(), size);
                    let (start, end) = span(&segments);
                    assert!(start < end && end <= REGION);
                }
            }
        }
    }

    /// A file replaces the device: the whole matrix must pass on it.
    #[test]
    fn the_matrix_holds_for_a_file() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("device");
        File::create(&path).unwrap().set_len(32 << 20).unwrap();
        let context = Context::new(&path).unwrap();
        for case in suite().cases {
            (case.run)(&context).unwrap_or_else(|stop| panic!("{}: {stop:?}", case.name));
        }
    }
}
