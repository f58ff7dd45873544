// SPDX-License-Identifier: GPL-2.0

//! The `ioctl` calls for block devices (`blockdev`, `blkdiscard`), with the results and errors of a
//! block device.
//!
//! The device is byte-addressable and has no blocks. A block size is reported as [`SECTOR`], the
//! smallest one with which such programs work, and ranges have to be aligned to it as for a block
//! device; except that a range may end at the end of the device, so that the whole device is always
//! a valid range.

use super::command;
use crate::{
    abstractions::fs::chardev::Access,
    device::Device,
    layout::Opcode,
    uapi::Command, //
};
use kernel::{
    ioctl::{
        _IO,
        _IOR, //
    },
    prelude::*, //
};

/// Size of a sector in bytes, the unit of block devices.
const SECTOR: u64 = 512;

/// Type of the `ioctl` numbers of `include/uapi/linux/fs.h`; `helpers.c` asserts the numbers.
const TYPE: u32 = 0x12;

const BLKROGET: u32 = _IO(TYPE, 94);
const BLKGETSIZE: u32 = _IO(TYPE, 96);
const BLKFLSBUF: u32 = _IO(TYPE, 97);
const BLKRAGET: u32 = _IO(TYPE, 99);
const BLKSSZGET: u32 = _IO(TYPE, 104);
const BLKBSZGET: u32 = _IOR::<usize>(TYPE, 112);
const BLKGETSIZE64: u32 = _IOR::<usize>(TYPE, 114);
const BLKDISCARD: u32 = _IO(TYPE, 119);
const BLKIOMIN: u32 = _IO(TYPE, 120);
const BLKIOOPT: u32 = _IO(TYPE, 121);
const BLKALIGNOFF: u32 = _IO(TYPE, 122);
const BLKPBSZGET: u32 = _IO(TYPE, 123);
const BLKROTATIONAL: u32 = _IO(TYPE, 126);
const BLKZEROOUT: u32 = _IO(TYPE, 127);

/// [`BLKBSZGET`] and [`BLKGETSIZE64`] as 32-bit programs have them: the numbers contain the size of
/// a `size_t`, not that of the value.
const BLKBSZGET_32: u32 = _IOR::<u32>(TYPE, 112);
const BLKGETSIZE64_32: u32 = _IOR::<u32>(TYPE, 114);

/// A block device request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Returns a value.
    Query(Query),
    /// Makes all written data durable.
    Flush,
    /// Changes a range: this opcode.
    Change(Opcode),
}

/// A value that a program can query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// Size in bytes.
    Bytes,
    /// Size in sectors.
    Sectors,
    /// The unit of reads, writes and ranges.
    BlockSize,
    /// The optimal size of a request: larger ones are not faster.
    BestSize,
    /// Values that are 0: whether the device is read-only, and the alignment offset.
    Zero,
    /// The read-ahead, a `long`: 0.
    ZeroLong,
    /// Whether the device rotates: 0.
    ZeroShort,
}

/// A value with its type in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// `unsigned short`
    Short(u16),
    /// `int`, `unsigned int`
    Int(u32),
    /// `long`, `unsigned long`: with the caller's size.
    Long(u64),
    /// `u64`
    Wide(u64),
}

impl Request {
    /// The request with this number; `compat` says that a 32-bit program sent it.
    pub(super) fn from_number(number: u32, compat: bool) -> Option<Self> {
        let query = match number {
            BLKDISCARD => return Some(Self::Change(Opcode::Discard)),
            BLKZEROOUT => return Some(Self::Change(Opcode::WriteZeroes)),
            BLKFLSBUF => return Some(Self::Flush),
            BLKGETSIZE64 if !compat => Query::Bytes,
            BLKGETSIZE64_32 if compat => Query::Bytes,
            BLKGETSIZE => Query::Sectors,
            BLKBSZGET if !compat => Query::BlockSize,
            BLKBSZGET_32 if compat => Query::BlockSize,
            BLKSSZGET | BLKPBSZGET | BLKIOMIN => Query::BlockSize,
            BLKIOOPT => Query::BestSize,
            BLKROGET | BLKALIGNOFF => Query::Zero,
            BLKRAGET => Query::ZeroLong,
            BLKROTATIONAL => Query::ZeroShort,
            _ => return None,
        };
        Some(Self::Query(query))
    }
}

/// Returns the value of a query. `ENODEV` after unbind.
pub(super) fn answer(device: &Device, query: Query) -> Result<Value> {
    let hardware = device.hardware()?;
    // CAST: A capacity is never negative.
    let bytes = device.capacity() as u64;
    Ok(match query {
        Query::Bytes => Value::Wide(bytes),
        Query::Sectors => Value::Long(bytes / SECTOR),
        Query::BlockSize => Value::Int(SECTOR as u32),
        Query::BestSize => Value::Int(hardware.config().max_request_bytes()),
        Query::Zero => Value::Int(0),
        Query::ZeroLong => Value::Long(0),
        Query::ZeroShort => Value::Short(0),
    })
}

/// Makes all written data durable, like `fsync`. Sleeps.
pub(super) fn flush(device: &Device) -> Result {
    device.hardware()?.flush()
}

/// Discards `length` bytes from `start` on, or sets them to 0. Sleeps.
///
/// `EBADF` without write access; `EINVAL` for a range that is empty, not aligned, or not within the
/// device; `EOPNOTSUPP` if the device does not support the command.
pub(super) fn change(
    device: &Device,
    access: Access,
    opcode: Opcode,
    start: u64,
    length: u64,
) -> Result {
    if !access.write {
        return Err(EBADF);
    }
    // CAST: A capacity is never negative.
    if !is_range(start, length, device.capacity() as u64) {
        return Err(EINVAL);
    }
    let command = Command {
        opcode: opcode as u32,
        offset: start,
        length,
        ..Command::default()
    };
    let (_, outcome) = command::execute(device, access, &command)?;
    outcome
}

/// Whether a range is valid for a device of this many bytes.
fn is_range(start: u64, length: u64, capacity: u64) -> bool {
    let Some(end) = start.checked_add(length) else {
        return false;
    };
    let is_boundary = |place: u64| place % SECTOR == 0;
    length > 0 && end <= capacity && is_boundary(start) && (end == capacity || is_boundary(end))
}

#[kernel::macros::kunit_tests(ringbar_block)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_and_within() {
        assert!(is_range(0, 512, 512));
        assert!(is_range(512, 1024, 4096));
        assert!(!is_range(0, 0, 4096));
        assert!(!is_range(1, 511, 4096));
        assert!(!is_range(0, 100, 4096));
        assert!(!is_range(512, 4096, 4096));
        assert!(!is_range(4096, 512, 4096));
        assert!(!is_range(512, u64::MAX - 511, 4096));
        assert!(!is_range(u64::MAX - 511, 512, 4096));
    }

    #[test]
    fn range_may_end_with_the_device() {
        assert!(is_range(0, 1000, 1000));
        assert!(is_range(512, 488, 1000));
        assert!(!is_range(512, 480, 1000));
        assert!(!is_range(0, 1024, 1000));
    }

    #[test]
    fn numbers_of_32_bit_programs_are_theirs() {
        let bytes = Some(Request::Query(Query::Bytes));
        assert_eq!(Request::from_number(0x8008_1272, false), bytes);
        assert_eq!(Request::from_number(0x8004_1272, false), None);
        assert_eq!(Request::from_number(0x8004_1272, true), bytes);
        assert_eq!(Request::from_number(0x8008_1272, true), None);
        assert_eq!(
            Request::from_number(0x1277, true),
            Some(Request::Change(Opcode::Discard))
        );
    }
}
