// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands larger than the device's limit.

use std::fs::File;

use ringbar_uapi::{Command, Info, OP_COMPARE, OP_COPY, OP_CRC32C, OP_FILL};

use super::bench;
use crate::case::{Context, During, Stop, Verdict, expect_bytes};
use crate::check_eq;
use crate::pattern;
use crate::sys::{self, Region};

/// Bytes of the command: neither a multiple of the device's limit nor of the page size.
pub(super) const LENGTH: usize = (100 << 20) + 12_345;

/// Bytes that are stored and compared at a time.
const STEP: usize = 4 << 20;

/// A device with [`LENGTH`] bytes of test data from `start` on.
pub(super) struct LargeRange {
    pub(super) file: File,
    pub(super) bar: Region,
}

impl LargeRange {
    pub(super) fn new(context: &Context, start: usize) -> Verdict<Self> {
        let large = Self {
            file: context.open()?,
            bar: context.map()?,
        };
        let info = Info::from_bytes(&sys::info(&large.file)?);
        if info.max_command >= LENGTH as u64 || context.size() < 2 * LENGTH as u64 {
            return Err(Stop::Skipped(format!(
                "the device has {} bytes and executes {} at once",
                context.size(),
                info.max_command
            )));
        }
        for (at, data) in pieces() {
            large.bar.store(start + at, data);
        }
        Ok(large)
    }

    /// Checks the test data from `start` on.
    fn expect(&self, start: usize, what: &str) -> Verdict {
        for (at, data) in pieces() {
            let seen = self.bar.load(start + at, data.len());
            expect_bytes(&seen, data, &format!("{what}, from byte {at} on"))?;
        }
        Ok(())
    }

    fn execute(&self, opcode: u32, offset: usize, argument: u64) -> Verdict<u64> {
        let mut command = command(opcode, offset, argument);
        sys::execute(&self.file, &mut command).during(|| format!("{command:?}"))?;
        Ok(command.result)
    }
}

pub(super) fn command(opcode: u32, offset: usize, argument: u64) -> Command {
    Command {
        opcode,
        offset: offset as u64,
        length: LENGTH as u64,
        argument,
        ..Command::default()
    }
}

/// The test data in pieces, with their offsets.
fn pieces() -> impl Iterator<Item = (usize, &'static [u8])> {
    (0..LENGTH).step_by(STEP).map(|at| {
        let length = STEP.min(LENGTH - at);
        (at, pattern::bytes(at as u64, length))
    })
}

/// CRC of the test data.
pub(super) fn data_crc(before: u32) -> u32 {
    pieces().fold(before, |crc, (_, data)| bench::crc32c(crc, data))
}

pub(super) fn copy(context: &Context) -> Verdict {
    const LOW: usize = 4099;
    const HIGH: usize = LOW + (3 << 20) + 5;

    // The ranges are closer than one chunk of a copy.
    let b = LargeRange::new(context, LOW)?;
    let copied = b.execute(OP_COPY, HIGH, LOW as u64)?;
    check_eq!(copied, LENGTH as u64, "bytes copied up");
    b.expect(HIGH, "copied up")?;
    let copied = b.execute(OP_COPY, LOW, HIGH as u64)?;
    check_eq!(copied, LENGTH as u64, "bytes copied down");
    b.expect(LOW, "copied down")
}

pub(super) fn fill(context: &Context) -> Verdict {
    const START: usize = 777;
    const PATTERN: u64 = 0xf1e2_d3c4_b5a6_9788;

    let b = LargeRange::new(context, START)?;
    let around = [b.bar.load(0, START), b.bar.load(START + LENGTH, STEP)];
    check_eq!(
        b.execute(OP_FILL, START, PATTERN)?,
        LENGTH as u64,
        "bytes filled"
    );
    let expected = PATTERN.to_le_bytes().repeat(STEP / 8);
    for at in (0..LENGTH).step_by(STEP) {
        let length = STEP.min(LENGTH - at);
        let seen = b.bar.load(START + at, length);
        expect_bytes(&seen, &expected[..length], &format!("from byte {at} on"))?;
    }
    expect_bytes(&b.bar.load(0, START), &around[0], "before the range")?;
    expect_bytes(
        &b.bar.load(START + LENGTH, STEP),
        &around[1],
        "behind the range",
    )
}

pub(super) fn crc32c(context: &Context) -> Verdict {
    const START: usize = 31;

    let b = LargeRange::new(context, START)?;
    for before in [0, 0x1234_5678] {
        check_eq!(
            b.execute(OP_CRC32C, START, before.into())?,
            u64::from(data_crc(before)),
            "CRC after {before:#x}"
        );
    }
    Ok(())
}

pub(super) fn compare(context: &Context) -> Verdict {
    const OTHER: usize = LENGTH + 4096;

    let b = LargeRange::new(context, 1)?;
    b.execute(OP_COPY, OTHER, 1)?;
    let equal = || b.execute(OP_COMPARE, 1, OTHER as u64);
    check_eq!(equal()?, LENGTH as u64, "equal bytes");
    // In the last part, in the first, and at the start.
    for at in [LENGTH - 1, (64 << 20) + 1, 64 << 20, (64 << 20) - 1, 0] {
        let byte = b.bar.load(OTHER + at, 1);
        b.bar.store(OTHER + at, &[!byte[0]]);
        check_eq!(equal()?, at as u64, "equal bytes");
    }
    Ok(())
}
