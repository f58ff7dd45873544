// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands: operations within the device memory.
//!
//! The driver may change the device memory through the aperture while a command executes. So
//! a command evaluates bytes only in private copies, chunk by chunk, and needs no operations
//! of the storage but read, write, discard and write zeroes.

use ringbar_spec::{Opcode, RequestHeader};
use ringbar_storage::{Storage, StorageError};
use vm_memory::VolatileSlice;

/// Size of a chunk in bytes: two chunks fit into the cache, and it is a multiple of the 8
/// bytes of a fill's pattern.
const CHUNK: usize = 64 << 10;

/// Size of a chunk of a copy in a storage that waits for a disk, in bytes: each chunk is a read
/// and a write that nothing else runs beside.
const DISK_CHUNK: usize = 4 << 20;

/// Greatest length in bytes of one step of a command that copies or reads, about 0.1 ms. A
/// message that stops the queue waits for one step.
const COPY_STEP: u64 = 1 << 20;

/// Greatest length in bytes of one step of a command that the storage executes itself.
pub(crate) const STORAGE_STEP: u64 = 8 << 20;

/// Progress of a command.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Number of bytes that are done, from the start of the range.
    pub(crate) done: u64,
    /// Checksum of those bytes.
    pub(crate) crc: u32,
}

/// Result of one step of a command.
#[derive(Debug)]
pub(crate) enum Step {
    /// The command is done, with this result.
    Done(Result<u64, StorageError>),
    /// There are more steps.
    More,
}

/// Executes commands. The buffers are reused, so commands allocate nothing.
#[derive(Debug, Default)]
pub(crate) struct Executor {
    /// Empty until the first command that needs it, then [`CHUNK`] bytes, like `second`.
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Executor {
    /// Executes the next step of a command, whose ranges lie within the storage.
    ///
    /// A command of several steps can be executed again from the start. A command that changes
    /// its own source cannot, so it has one step of any length.
    pub(crate) fn step(
        &mut self,
        storage: &dyn Storage,
        header: &RequestHeader,
        progress: &mut Progress,
    ) -> Step {
        let left = header.length - progress.done;
        let length = match header.opcode {
            Opcode::Discard | Opcode::WriteZeroes => left.min(STORAGE_STEP),
            _ if is_unrepeatable(header) => left,
            _ => left.min(COPY_STEP),
        };
        match self.execute(storage, header, progress, length) {
            Err(error) => Step::Done(Err(error)),
            Ok(Some(result)) => Step::Done(Ok(result)),
            Ok(None) => {
                progress.done += length;
                if progress.done < header.length {
                    return Step::More;
                }
                Step::Done(Ok(match header.opcode {
                    Opcode::Crc32c => progress.crc.into(),
                    _ => header.length,
                }))
            }
        }
    }

    /// Executes the next `length` bytes. Returns a result where the command ends early.
    fn execute(
        &mut self,
        storage: &dyn Storage,
        header: &RequestHeader,
        progress: &mut Progress,
        length: u64,
    ) -> Result<Option<u64>, StorageError> {
        let at = header.offset + progress.done;
        let second = header.argument.wrapping_add(progress.done);
        match header.opcode {
            Opcode::Discard => storage.discard(at, length)?,
            Opcode::WriteZeroes => storage.write_zeroes(at, length)?,
            Opcode::Copy => self.copy(storage, second, at, length)?,
            Opcode::Fill => self.fill(storage, at, length, header.argument)?,
            Opcode::Compare => {
                let equal = self.compare(storage, at, second, length)?;
                if equal < length {
                    return Ok(Some(progress.done + equal));
                }
            }
            Opcode::Crc32c => {
                let before = match progress.done {
                    // Fits: the header was parsed.
                    0 => header.argument as u32,
                    _ => progress.crc,
                };
                progress.crc = self.crc32c(storage, at, length, before)?;
            }
            // Not commands.
            Opcode::Read | Opcode::Write | Opcode::Flush | Opcode::MapAperture => {}
        }
        Ok(None)
    }

    fn copy(
        &mut self,
        storage: &dyn Storage,
        source: u64,
        target: u64,
        length: u64,
    ) -> Result<(), StorageError> {
        let mut large;
        let buffer = match storage.asynchronous() {
            None => prepare(&mut self.first),
            // Not kept: only a copy between overlapping ranges is executed here.
            Some(_) => {
                large = vec![0; DISK_CHUNK.min(usize::try_from(length).unwrap_or(usize::MAX))];
                &mut large[..]
            }
        };
        if buffer.is_empty() {
            return Ok(());
        }
        // Where the target begins within the source, a copy in ascending order would overwrite
        // bytes that are still to be copied.
        let backwards = target > source && target - source < length;
        let size = buffer.len();
        let count = length.div_ceil(size as u64);
        for i in 0..count {
            let (at, len) = chunk(length, size, if backwards { count - 1 - i } else { i });
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
        for (at, len) in chunks(length) {
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
        for (at, len) in chunks(length) {
            let (first, second) = (&mut first[..len], &mut second[..len]);
            storage.read(one + at, VolatileSlice::from(&mut *first))?;
            storage.read(other + at, VolatileSlice::from(&mut *second))?;
            // Most chunks are equal, and comparing whole slices is faster than byte by byte.
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
        for (at, len) in chunks(length) {
            storage.read(offset + at, VolatileSlice::from(&mut buffer[..len]))?;
            crc = crc32c::crc32c_append(crc, &buffer[..len]);
        }
        Ok(crc)
    }
}

/// Whether a command changes its own source: a copy between overlapping ranges. Executing it
/// twice gives another result.
pub(crate) fn is_unrepeatable(header: &RequestHeader) -> bool {
    header.opcode == Opcode::Copy && header.offset.abs_diff(header.argument) < header.length
}

fn prepare(buffer: &mut Vec<u8>) -> &mut [u8] {
    buffer.resize(CHUNK, 0);
    buffer
}

/// Start and length of each chunk of `length` bytes, in order.
fn chunks(length: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..length.div_ceil(CHUNK as u64)).map(move |index| chunk(length, CHUNK, index))
}

/// Start and length of chunk `index` of `length` bytes, in chunks of `size` bytes.
fn chunk(length: u64, size: usize, index: u64) -> (u64, usize) {
    let at = index * size as u64;
    // Fits: no more than a chunk.
    (at, (length - at).min(size as u64) as usize)
}
