// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A reference implementation of the commands, on a vector of bytes.

use ringbar_spec::{Opcode, RequestHeader};

pub const COMMANDS: [Opcode; 6] = [
    Opcode::Discard,
    Opcode::WriteZeroes,
    Opcode::Copy,
    Opcode::Fill,
    Opcode::Compare,
    Opcode::Crc32c,
];

/// Bit by bit, from the definition: the reflected polynomial, with the register
/// inverted before and after.
pub fn crc32c(before: u32, bytes: &[u8]) -> u32 {
    let mut register = !before;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = register & 1 != 0;
            register >>= 1;
            if carry {
                register ^= 0x1edc_6f41u32.reverse_bits();
            }
        }
    }
    !register
}

/// Executes a command whose ranges lie within `bytes`; returns its result.
pub fn execute(header: &RequestHeader, bytes: &mut [u8]) -> u64 {
    let range = |start: u64| start as usize..(start + header.length) as usize;
    let own = range(header.offset);
    match header.opcode {
        Opcode::Discard | Opcode::WriteZeroes => bytes[own].fill(0),
        Opcode::Copy => {
            let source = bytes[range(header.argument)].to_vec();
            bytes[own].copy_from_slice(&source);
        }
        Opcode::Fill => {
            for (i, byte) in bytes[own].iter_mut().enumerate() {
                *byte = (header.argument >> (i % 8 * 8)) as u8;
            }
        }
        Opcode::Compare => {
            let other = &bytes[range(header.argument)];
            let differs = |i: &usize| bytes[own.start + i] != other[*i];
            return (0..other.len()).find(differs).unwrap_or(other.len()) as u64;
        }
        Opcode::Crc32c => return crc32c(header.argument as u32, &bytes[own]).into(),
        other => panic!("{other:?} is no command"),
    }
    header.length
}
