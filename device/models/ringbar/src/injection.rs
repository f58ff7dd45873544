// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults on demand, as requests have them (`ringbar_faults`).
//!
//! They concern requests and not the operations of the storage, because a request is what a rule
//! counts: with a mapped storage a read is an operation for each of its segments, and a copy is
//! many. And only a request can wait without its worker.

use ringbar_faults::{Access, Errno};
use ringbar_spec::{Opcode, RequestHeader, StatusCode};
use ringbar_storage::{Storage, StorageError};
use vm_memory::VolatileSlice;

/// A request as rules know it.
pub(crate) fn access(queue: u16, header: &RequestHeader) -> Access {
    let range = |offset| Some((offset, header.length));
    Access {
        operation: header.opcode,
        queue,
        ranges: [
            (header.opcode != Opcode::Flush).then_some((header.offset, header.length)),
            header
                .opcode
                .has_second_range()
                .then_some(header.argument)
                .and_then(range),
        ],
    }
}

/// The status code that becomes this error in the guest.
pub(crate) const fn status_code(errno: Errno) -> StatusCode {
    match errno {
        Errno::Eio => StatusCode::IoError,
        Errno::Enospc => StatusCode::NoSpace,
        Errno::Enxio => StatusCode::OutOfRange,
        Errno::Einval => StatusCode::Invalid,
        Errno::Eopnotsupp => StatusCode::Unsupported,
    }
}

/// Inverts the byte at offset `corrupt` of `data`, the bytes from `offset` on, if it is there.
pub(crate) fn invert(corrupt: u64, offset: u64, data: &mut [u8]) {
    let index = corrupt.checked_sub(offset).map(usize::try_from);
    if let Some(byte) = index.and_then(|index| data.get_mut(index.ok()?)) {
        *byte = !*byte;
    }
}

/// The byte at offset `corrupt` of `slice`, which has the bytes from `offset` on, if it is there.
fn byte_of<'a>(corrupt: u64, offset: u64, slice: &VolatileSlice<'a>) -> Option<VolatileSlice<'a>> {
    let index = usize::try_from(corrupt.checked_sub(offset)?).ok()?;
    slice.subslice(index, 1).ok()
}

/// Inverts that byte in guest memory, after a read.
#[cold]
pub(crate) fn invert_read(corrupt: u64, offset: u64, slice: &VolatileSlice<'_>) {
    if let Some(byte) = byte_of(corrupt, offset, slice) {
        let mut value = [0u8];
        byte.copy_to(&mut value[..]);
        byte.copy_from(&[!value[0]]);
    }
}

/// Inverts that byte in the storage, after a write of `slice`.
#[cold]
pub(crate) fn invert_written(
    storage: &dyn Storage,
    corrupt: u64,
    offset: u64,
    slice: &VolatileSlice<'_>,
) -> Result<(), StorageError> {
    let Some(byte) = byte_of(corrupt, offset, slice) else {
        return Ok(());
    };
    let mut value = [0u8];
    byte.copy_to(&mut value[..]);
    storage.write(corrupt, VolatileSlice::from(&mut [!value[0]][..]))
}
