// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands: what the device does within its own memory.
//!
//! The driver may change the device memory through the aperture while a command
//! works on it. So the bytes are looked at only in private copies, one piece
//! after the other, and nothing needs more of a storage than to read and write.

use ringbar_spec::{Opcode, RequestHeader};
use vm_memory::VolatileSlice;

use crate::queue::Outcome;
use crate::storage::{Storage, StorageError};

/// Bytes copied at a time: small enough for two of them to stay in the cache,
/// and a multiple of the pattern of a fill.
const PIECE: usize = 64 << 10;

/// Executes commands. Made to be used again without a new allocation.
#[derive(Debug, Default)]
pub(crate) struct Executor {
    /// Empty until the first command that needs them, then of [`PIECE`] bytes.
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Executor {
    /// Executes the command, whose ranges lie within the storage, to the end.
    pub(crate) fn execute(&mut self, storage: &dyn Storage, header: &RequestHeader) -> Outcome {
        let done = self.run(storage, header).and_then(|result| {
            if header.flags & RequestHeader::FUA != 0 {
                storage.flush_range(header.offset, header.length)?;
            }
            Ok(result)
        });
        match done {
            Ok(result) => Outcome::of(result, Ok(())),
            Err(error) => Outcome::of(0, Err(error)),
        }
    }

    fn run(&mut self, storage: &dyn Storage, header: &RequestHeader) -> Result<u64, StorageError> {
        let &RequestHeader {
            offset,
            length,
            argument,
            ..
        } = header;
        match header.opcode {
            Opcode::Discard => storage.discard(offset, length)?,
            Opcode::WriteZeroes => storage.write_zeroes(offset, length)?,
            Opcode::Copy => self.copy(storage, argument, offset, length)?,
            Opcode::Fill => self.fill(storage, offset, length, argument)?,
            Opcode::Compare => return self.compare(storage, offset, argument, length),
            Opcode::Crc32c => {
                // Fits: the header was parsed.
                let crc = self.crc32c(storage, offset, length, argument as u32)?;
                return Ok(u64::from(crc));
            }
            // Not commands.
            Opcode::Read | Opcode::Write | Opcode::Flush | Opcode::MapAperture => {}
        }
        Ok(length)
    }

    fn copy(
        &mut self,
        storage: &dyn Storage,
        source: u64,
        target: u64,
        length: u64,
    ) -> Result<(), StorageError> {
        let buffer = prepare(&mut self.first);
        // Where the target begins within the source, going forwards would
        // overwrite what is still to be copied.
        let backwards = target > source && target - source < length;
        let count = length.div_ceil(PIECE as u64);
        for i in 0..count {
            let (at, len) = piece(length, if backwards { count - 1 - i } else { i });
            storage.read(source + at, VolatileSlice::from(&mut buffer[..len]))?;
            storage.write(target + at, VolatileSlice::from(&mut buffer[..len]))?;
        }
        Ok(())
    }

    fn fill(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        length: u64,
        pattern: u64,
    ) -> Result<(), StorageError> {
        let buffer = prepare(&mut self.first);
        for word in buffer.chunks_exact_mut(8) {
            word.copy_from_slice(&pattern.to_le_bytes());
        }
        for (at, len) in pieces(length) {
            storage.write(offset + at, VolatileSlice::from(&mut buffer[..len]))?;
        }
        Ok(())
    }

    /// Returns the number of equal leading bytes.
    fn compare(
        &mut self,
        storage: &dyn Storage,
        one: u64,
        other: u64,
        length: u64,
    ) -> Result<u64, StorageError> {
        let first = prepare(&mut self.first);
        let second = prepare(&mut self.second);
        for (at, len) in pieces(length) {
            let (first, second) = (&mut first[..len], &mut second[..len]);
            storage.read(one + at, VolatileSlice::from(&mut *first))?;
            storage.read(other + at, VolatileSlice::from(&mut *second))?;
            // Most pieces are equal, which is found out faster in one go.
            if first != second {
                let equal = first.iter().zip(&*second).take_while(|(a, b)| a == b);
                return Ok(at + equal.count() as u64);
            }
        }
        Ok(length)
    }

    fn crc32c(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        length: u64,
        before: u32,
    ) -> Result<u32, StorageError> {
        let buffer = prepare(&mut self.first);
        let mut crc = before;
        for (at, len) in pieces(length) {
            storage.read(offset + at, VolatileSlice::from(&mut buffer[..len]))?;
            crc = crc32c::crc32c_append(crc, &buffer[..len]);
        }
        Ok(crc)
    }
}

fn prepare(buffer: &mut Vec<u8>) -> &mut [u8] {
    buffer.resize(PIECE, 0);
    buffer
}

/// Start and length of each piece of `length` bytes, in order.
fn pieces(length: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..length.div_ceil(PIECE as u64)).map(move |index| piece(length, index))
}

/// Start and length of piece `index` of `length` bytes, of which it is a piece.
fn piece(length: u64, index: u64) -> (u64, usize) {
    let at = index * PIECE as u64;
    // Fits: no more than a piece.
    (at, (length - at).min(PIECE as u64) as usize)
}
