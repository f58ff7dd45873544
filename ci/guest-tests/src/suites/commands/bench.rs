// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A range of the device and its expected content.

use std::fs::File;

use ringbar_uapi::{
    Command, OP_COMPARE, OP_COPY, OP_CRC32C, OP_DISCARD, OP_FILL, OP_FLUSH, OP_WRITE_ZEROES,
};

use crate::case::{Context, During, Verdict, expect_bytes};
use crate::check_eq;
use crate::pattern;
use crate::sys::{self, Region};

/// All opcodes.
pub(super) const ALL: [u32; 7] = [
    OP_FLUSH,
    OP_DISCARD,
    OP_WRITE_ZEROES,
    OP_COPY,
    OP_FILL,
    OP_COMPARE,
    OP_CRC32C,
];

/// Offset of the range in the device.
const START: u64 = (9 << 20) + 77;

/// Bytes in the range: several times the device's chunk size.
pub(super) const WINDOW: usize = 300_007;

/// An open device and a range of it, whose content is known.
pub(super) struct Fixture {
    pub(super) file: File,
    pub(super) bar: Region,
    pub(super) memory: Region,
    model: Vec<u8>,
}

impl Fixture {
    pub(super) fn new(context: &Context, seed: u64) -> Verdict<Self> {
        let fixture = Self {
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(WINDOW)?,
            model: pattern::bytes(seed, WINDOW).to_vec(),
        };
        fixture.bar.store(START as usize, &fixture.model);
        Ok(fixture)
    }

    /// A command on `length` bytes at `at` of the range. An argument that is an offset is
    /// relative to the range, too.
    pub(super) fn command(opcode: u32, at: usize, length: usize, argument: u64) -> Command {
        let argument = match opcode {
            OP_COPY | OP_COMPARE => START + argument,
            _ => argument,
        };
        Command {
            opcode,
            offset: START + at as u64,
            length: length as u64,
            argument,
            ..Command::default()
        }
    }

    /// Executes the command on the model, and returns the expected result.
    pub(super) fn model(&mut self, opcode: u32, at: usize, length: usize, argument: u64) -> u64 {
        let range = at..at + length;
        let other = argument as usize;
        match opcode {
            OP_DISCARD | OP_WRITE_ZEROES => self.model[range].fill(0),
            OP_COPY => self.model.copy_within(other..other + length, at),
            OP_FILL => {
                let pattern = argument.to_le_bytes();
                for (i, byte) in self.model[range].iter_mut().enumerate() {
                    *byte = pattern[i % 8];
                }
            }
            OP_COMPARE => {
                let pairs = self.model[range].iter().zip(&self.model[other..]);
                return pairs.take_while(|(one, other)| one == other).count() as u64;
            }
            OP_CRC32C => return u64::from(crc32c(argument as u32, &self.model[range])),
            OP_FLUSH => return 0,
            unknown => panic!("no opcode {unknown}"),
        }
        length as u64
    }

    /// Stores bytes in the range, through the map.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
        self.bar.store(START as usize + at, bytes);
    }

    /// Changes a byte of the range.
    pub(super) fn flip(&mut self, at: usize) {
        let changed = !self.model[at];
        self.put(at, &[changed]);
    }

    /// Executes a command on the device by `ioctl`, and compares the result and the whole
    /// range with the model.
    pub(super) fn step(&mut self, opcode: u32, at: usize, length: usize, argument: u64) -> Verdict {
        self.step_with_flags(opcode, 0, at, length, argument)
    }

    /// As [`Self::step`], with flags.
    pub(super) fn step_with_flags(
        &mut self,
        opcode: u32,
        flags: u32,
        at: usize,
        length: usize,
        argument: u64,
    ) -> Verdict {
        let what = format!("opcode {opcode}, {length} bytes at {at}, argument {argument:#x}");
        let mut command = Self::command(opcode, at, length, argument);
        command.flags = flags;
        // The driver ignores the input value.
        command.result = u64::MAX;
        let asked = command;
        sys::execute(&self.file, &mut command).during(|| what.clone())?;
        let result = command.result;
        command.result = asked.result;
        check_eq!(command, asked, "{what}: the structure, but for the result");
        check_eq!(
            result,
            self.model(opcode, at, length, argument),
            "{what}: result"
        );
        self.expect(&what)
    }

    /// Compares the whole range with the model, by the map and by DMA.
    pub(super) fn expect(&self, what: &str) -> Verdict {
        let seen = self.bar.load(START as usize, WINDOW);
        expect_bytes(&seen, &self.model, &format!("{what}: through the map"))?;
        let read = sys::pread(&self.file, self.memory.buffer(0, WINDOW), START)?;
        check_eq!(read, WINDOW, "{what}: bytes read");
        let seen = self.memory.load(0, WINDOW);
        expect_bytes(&seen, &self.model, &format!("{what}: by DMA"))
    }
}

/// CRC-32C (Castagnoli) of bytes, continuing from the CRC `before`.
pub(in crate::suites) fn crc32c(before: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                // The polynomial with its bits reversed.
                crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!before, |crc, byte| {
        crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_check_string_and_of_rfc_3720() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
        let start = crc32c(0, b"1234");
        assert_eq!(crc32c(start, b"56789"), 0xe306_9283);
    }
}
