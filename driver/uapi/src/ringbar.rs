// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note

//! The interface to user space. The C header is `ringbar.h`.
//!
//! # Maps
//!
//! The upper bits of the offset of `mmap`, from [`MAP_SHIFT`] on, select the contents of the map;
//! the lower bits are the offset within these contents.
//!
//! | selector | contents | access |
//! |---|---|---|
//! | [`MAP_MEMORY`] | device memory, write-combining | read and write |
//! | [`MAP_MEMORY_UNCACHED`] | device memory, uncached | read and write |
//! | [`MAP_MEMORY_CACHED`] | device memory, cached; only sound while it is RAM, as in a virtual machine, and often impossible below 4 GiB | read and write |
//! | [`MAP_STATISTICS`] | one page of counters | read |
//! | [`MAP_EVENTS`] | the log of the device's events | read |
//! | [`MAP_USED_RINGS`] | used rings of the queues, [`USED_RING_STRIDE`] bytes apart | read |
//!
//! All maps of the device memory that exist at a time, in all processes, have the same selector.
//! `mmap` with the name and the offset that `/proc/PID/maps` shows makes the same map again.
//! Debuggers read all maps, and write to writable ones.
//!
//! | errno of `mmap` | reason |
//! |---|---|
//! | `EINVAL` | beyond the end, an unknown selector, or private and writable |
//! | `EACCES` | executable, writable for read-only contents, or not permitted by the access mode of the file |
//! | `EBUSY` | the device memory is mapped with another selector |
//! | `EOPNOTSUPP` | the device memory cannot be cached on this machine |
//! | `ENODEV` | the device is removed or out of service, or its memory cannot be mapped: see [`CAP_MMAP`] |
//!
//! A map of device memory raises `SIGBUS` beyond the end of a device that has become smaller, and
//! once the device is out of service; all maps do once the device is removed. A map that was lost
//! stays lost, but its memory can be mapped again when it is available.
//!
//! # Commands
//!
//! A [`Command`] executes an operation beyond reading and writing, by `ioctl` with [`IOC_COMMAND`]
//! or by io_uring with `IORING_OP_URING_CMD`; [`Info::capabilities`] has a bit for each supported
//! opcode.
//!
//! | opcode | effect | argument | result |
//! |---|---|---|---|
//! | [`OP_FLUSH`] | makes all written data durable; offset and length are 0 | 0 | 0 |
//! | [`OP_DISCARD`] | discards the range, which reads as 0 afterwards | 0 | bytes |
//! | [`OP_WRITE_ZEROES`] | sets the range to 0 | 0 | bytes |
//! | [`OP_COPY`] | copies to the range, which may overlap the source | offset of the source | bytes |
//! | [`OP_FILL`] | repeats a pattern over the range | 8 bytes, little-endian | bytes |
//! | [`OP_COMPARE`] | compares the range with another | offset of the other | equal bytes from the start |
//! | [`OP_CRC32C`] | CRC-32C of the range | CRC of the data before it, or 0 | CRC |
//!
//! | errno | reason |
//! |---|---|
//! | `EBADF` | the file is not open for the access of the command |
//! | `EINVAL` | an opcode, flag or argument that does not exist |
//! | `EOPNOTSUPP` | the device does not support the command |
//! | `ENXIO` | a range that is not within the device |
//! | `EINTR` | killed, or (`ioctl` only) interrupted while it waited for a slot |
//! | `ENODEV` | the device is removed |
//! | `EIO`, `ENOSPC` | the device failed |
//!
//! With `ioctl` the result is in the structure, also after an error: then it says how much was done
//! before. After a caller was killed, the device may continue to execute its command.
//!
//! With io_uring the structure, with `result` 0, is in the `cmd` field of a 128-byte submission
//! entry (`IORING_SETUP_SQE128`) and [`IOC_COMMAND`] in `cmd_op`. The completion has 0 or a
//! negative errno in `res`, and the result in the first of the additional words of a 32-byte entry
//! (`IORING_SETUP_CQE32`); a short completion entry has no result.
//!
//! # States
//!
//! The driver takes a device that breaks the protocol out of service: it resets the device and does
//! not start it again, because the behaviour of such a device is unknown. `IOC_RESET` (`ringbar
//! reset`) puts the device into service again, and so does binding the driver again. The driver
//! also resets the device if a request takes longer than `timeout_s` seconds, or four times as long
//! while other requests of its queue complete. `timeout_s` is a file in the directory of the PCI device
//! in sysfs, 0 for no limit; the module parameter of this name, 0 by default, is its first value.
//! While the machine sleeps, calls wait.
//!
//! | call | in service | asleep, or being reset | out of service | removed |
//! |---|---|---|---|---|
//! | `open` | succeeds | succeeds | succeeds | `ENOENT`, `ENODEV` |
//! | read, write, [`IOC_COMMAND`], `fsync`; libaio, io_uring | executed | wait; `EAGAIN` if they must not | `EIO` | `ENODEV` |
//! | the same, in flight when the state begins | | asleep: continue afterwards; reset: `EIO` | `EIO` | `ENODEV` |
//! | `poll` | reports a free slot | waits | `POLLERR`, `POLLHUP` | `POLLERR`, `POLLHUP` |
//! | `mmap` of device memory | succeeds | does not wait: `ENODEV` | `ENODEV` | `ENODEV` |
//! | access to such a map that existed before | shows the memory | asleep: no process runs; reset: `SIGBUS`, for good | `SIGBUS`, for good | `SIGBUS` |
//! | `mmap` of counters, log and rings | succeeds | succeeds | succeeds | `ENODEV` |
//! | [`IOC_INFO`] | [`STATE_IN_SERVICE`] | [`STATE_IN_SERVICE`], without [`CAP_MMAP`] | [`STATE_OUT_OF_SERVICE`], without [`CAP_MMAP`] | `ENODEV` |
//! | [`IOC_RESET`] | resets | waits, then resets | puts it into service again, or `EIO` | `ENODEV` |

/// Bit of the offset at which the selector begins.
pub const MAP_SHIFT: u32 = 56;

/// Device memory, write-combining.
pub const MAP_MEMORY: u64 = 0;
/// Device memory, uncached.
pub const MAP_MEMORY_UNCACHED: u64 = 1;
/// Device memory, cached.
pub const MAP_MEMORY_CACHED: u64 = 2;
/// Counters of 64 bits each: the `COUNTER` constants are their indices.
pub const MAP_STATISTICS: u64 = 3;
/// The event log.
pub const MAP_EVENTS: u64 = 4;
/// Used rings (VIRTIO 1.3, 2.7.8): queue `n` at `n *` [`USED_RING_STRIDE`].
pub const MAP_USED_RINGS: u64 = 5;

/// Distance of two used rings, in bytes.
pub const USED_RING_STRIDE: u64 = 1 << 20;

/// Index of the number of requests that were submitted to the device.
pub const COUNTER_REQUESTS: usize = 0;
/// Index of the number of notifications of the device.
pub const COUNTER_DOORBELLS: usize = 1;
/// Index of the number of interrupts handled.
pub const COUNTER_INTERRUPTS: usize = 2;
/// Index of the number of data segments that were submitted to the device. Contiguous memory is one
/// segment, however many pages it has.
pub const COUNTER_SEGMENTS: usize = 3;

/// Number of pages of the event log.
pub const EVENT_LOG_PAGES: usize = 4;
/// Number of 64-bit words of a record. Word 0 of the log is the number of records ever written;
/// record `n` is at word `EVENT_RECORD_WORDS * (1 + n % capacity)`, where the capacity is the
/// number of records that fit behind the place of the first one. A record is: time in nanoseconds
/// since boot, kind, and two values.
pub const EVENT_RECORD_WORDS: usize = 4;

/// The device was started; value: size of the device memory in bytes.
pub const EVENT_STARTED: u64 = 1;
/// The device memory has a new size; value: size in bytes.
pub const EVENT_CAPACITY: u64 = 2;
/// A queue broke; values: queue, 1 if the device reported it and 0 if the driver found it.
pub const EVENT_QUEUE_BROKEN: u64 = 3;
/// The device was taken out of service; value: errno.
pub const EVENT_STOPPED: u64 = 4;
/// The device was suspended with the machine.
pub const EVENT_SUSPENDED: u64 = 5;
/// The device was reset; requests in flight ended with `EIO`. Then follows [`EVENT_STARTED`], or
/// [`EVENT_STOPPED`] if the device does not start again. Value: one of the `RESET` constants.
pub const EVENT_RESET: u64 = 6;
/// A request took too long.
pub const RESET_BY_TIMEOUT: u64 = 0;
/// An administrator requested the reset.
pub const RESET_BY_ADMINISTRATOR: u64 = 1;

/// Flushes the device.
pub const OP_FLUSH: u32 = 3;
/// Discards a range.
pub const OP_DISCARD: u32 = 4;
/// Sets a range to zero.
pub const OP_WRITE_ZEROES: u32 = 5;
/// Copies a range.
pub const OP_COPY: u32 = 6;
/// Fills a range.
pub const OP_FILL: u32 = 7;
/// Compares two ranges.
pub const OP_COMPARE: u32 = 8;
/// Computes the CRC-32C of a range.
pub const OP_CRC32C: u32 = 9;

/// The data that the command writes is durable when the command completes. For commands that write.
pub const COMMAND_DURABLE: u32 = 1;

/// Device memory can be mapped. The lower bits stand for opcodes: bit `n` is set if the device
/// supports the opcode of value `n`.
pub const CAP_MMAP: u64 = 1 << 32;
/// Completions can be polled for (`IORING_SETUP_IOPOLL`) on a queue without
/// interrupts.
pub const CAP_IOPOLL: u64 = 1 << 33;

/// [`Info::state`]: the device works.
pub const STATE_IN_SERVICE: u32 = 0;
/// [`Info::state`]: the device has failed, and all requests fail with `EIO` until it is reset.
pub const STATE_OUT_OF_SERVICE: u32 = 1;

/// Type of the `ioctl` numbers.
pub const IOC_TYPE: u32 = 0xd7;
/// Fills in an [`Info`]. `_IOR(IOC_TYPE, 0, struct ringbar_info)`
pub const IOC_INFO: u32 = ioc(2, 0, Info::SIZE);
/// Executes a [`Command`] and waits for its end.
/// `_IOWR(IOC_TYPE, 1, struct ringbar_command)`
pub const IOC_COMMAND: u32 = ioc(3, 1, Command::SIZE);
/// Resets the device and puts it into service again; see the table of states. `EPERM` without
/// `CAP_SYS_ADMIN`, `EIO` if the device does not start again. `_IO(IOC_TYPE, 2)`
pub const IOC_RESET: u32 = ioc(0, 2, 0);

/// As `_IOC` of `include/uapi/asm-generic/ioctl.h`.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    // CAST: Structures of less than 16 KiB.
    direction << 30 | (size as u32) << 16 | IOC_TYPE << 8 | number
}

/// `struct ringbar_info`: the description of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// [`CAP_MMAP`], [`CAP_IOPOLL`] and the bits of the opcodes.
    pub capabilities: u64,
    /// Size of the device memory in bytes.
    pub capacity: u64,
    /// Number of these bytes, from the start, that can be mapped.
    pub aperture: u64,
    /// Size of the largest request in bytes. A longer call becomes several requests.
    pub max_request: u64,
    /// Size of the largest command that the device executes as one request, in bytes. A longer
    /// command becomes several requests.
    pub max_command: u64,
    /// Number of I/O queues in use.
    pub io_queues: u32,
    /// Greatest number of segments of contiguous memory in one request.
    pub max_segments: u32,
    /// One of the `STATE` constants.
    pub state: u32,
}

impl Info {
    /// Size of the structure in bytes; the last 12 are reserved, and 0.
    pub const SIZE: usize = 64;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&self.capabilities.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.capacity.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.aperture.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.max_request.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.max_command.to_ne_bytes());
        bytes[40..44].copy_from_slice(&self.io_queues.to_ne_bytes());
        bytes[44..48].copy_from_slice(&self.max_segments.to_ne_bytes());
        bytes[48..52].copy_from_slice(&self.state.to_ne_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            capabilities: u64::from_ne_bytes(array(bytes, 0)),
            capacity: u64::from_ne_bytes(array(bytes, 8)),
            aperture: u64::from_ne_bytes(array(bytes, 16)),
            max_request: u64::from_ne_bytes(array(bytes, 24)),
            max_command: u64::from_ne_bytes(array(bytes, 32)),
            io_queues: u32::from_ne_bytes(array(bytes, 40)),
            max_segments: u32::from_ne_bytes(array(bytes, 44)),
            state: u32::from_ne_bytes(array(bytes, 48)),
        }
    }
}

/// `struct ringbar_command`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// One of the `OP` constants.
    pub opcode: u32,
    /// [`COMMAND_DURABLE`] or 0.
    pub flags: u32,
    /// Start of the range in the device memory, in bytes.
    pub offset: u64,
    /// Length of the range in bytes.
    pub length: u64,
    /// Depends on the opcode.
    pub argument: u64,
    /// Depends on the opcode. `ioctl` ignores the value that the caller passes.
    pub result: u64,
}

impl Command {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 40;
    /// Offset of the result in the structure, in bytes.
    pub const RESULT_AT: usize = 32;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.opcode.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.argument.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.result.to_ne_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            opcode: u32::from_ne_bytes(array(bytes, 0)),
            flags: u32::from_ne_bytes(array(bytes, 4)),
            offset: u64::from_ne_bytes(array(bytes, 8)),
            length: u64::from_ne_bytes(array(bytes, 16)),
            argument: u64::from_ne_bytes(array(bytes, 24)),
            result: u64::from_ne_bytes(array(bytes, 32)),
        }
    }
}

/// `N` bytes from `at` on; the constants of the callers keep them within the array.
fn array<const N: usize, const S: usize>(bytes: &[u8; S], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
