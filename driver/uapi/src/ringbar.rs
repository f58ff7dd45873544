// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note

//! What user space relies on. The C header is `ringbar.h`.
//!
//! # Maps
//!
//! The offset given to `mmap` selects what is mapped in its upper bits, from
//! [`MAP_SHIFT`] on, and where in it by the rest.
//!
//! | selector | what | access |
//! |---|---|---|
//! | [`MAP_MEMORY`] | device memory, write-combining | read and write |
//! | [`MAP_MEMORY_UNCACHED`] | device memory, uncached | read and write |
//! | [`MAP_MEMORY_CACHED`] | device memory, cached; only sound while it is RAM, as in a virtual machine, and often impossible below 4 GiB | read and write |
//! | [`MAP_STATISTICS`] | one page of counters | read |
//! | [`MAP_EVENTS`] | the log of what happened to the device | read |
//! | [`MAP_USED_RINGS`] | used rings of the queues, [`USED_RING_STRIDE`] bytes apart | read |
//!
//! All maps of the device memory that exist at a time, in all processes, have the same
//! selector. What `/proc/PID/maps` says of a map, name and offset, makes it again.
//! Debuggers read all maps, and write to those that can be written to.
//!
//! | errno of `mmap` | when |
//! |---|---|
//! | `EINVAL` | beyond the end, an unknown selector, or private and writable |
//! | `EACCES` | executable, writable where there is only reading, or not allowed by how the file was opened |
//! | `EBUSY` | the device memory is mapped with another selector |
//! | `EOPNOTSUPP` | the device memory cannot be cached here |
//! | `ENODEV` | the device has gone or is out of service, or its memory cannot be mapped: [`CAP_MMAP`] tells |
//!
//! A map of device memory raises `SIGBUS` where the device has become smaller, and
//! once the device is out of service; all maps do once it has gone. What is lost so does
//! not come back, but can be mapped again when the memory is there.
//!
//! # Commands
//!
//! What the device does beyond reading and writing is asked for with a [`Command`],
//! by `ioctl` with [`IOC_COMMAND`] or by io_uring with `IORING_OP_URING_CMD`; whether
//! it does so, [`Info::capabilities`] tells.
//!
//! | opcode | what | argument | result |
//! |---|---|---|---|
//! | [`OP_FLUSH`] | makes all that was written durable; offset and length are 0 | 0 | 0 |
//! | [`OP_DISCARD`] | gives the range up, which reads as 0 afterwards | 0 | bytes |
//! | [`OP_WRITE_ZEROES`] | sets the range to 0 | 0 | bytes |
//! | [`OP_COPY`] | copies to the range, which may overlap the source | offset of the source | bytes |
//! | [`OP_FILL`] | repeats a pattern over the range | 8 bytes, little-endian | bytes |
//! | [`OP_COMPARE`] | compares the range with another | offset of the other | equal bytes from the start |
//! | [`OP_CRC32C`] | CRC-32C of the range | CRC of what came before, or 0 | CRC |
//!
//! | errno | when |
//! |---|---|
//! | `EBADF` | the file is not open for what the command does |
//! | `EINVAL` | an opcode, flag or argument that does not exist |
//! | `EOPNOTSUPP` | the device does not execute this one |
//! | `ENXIO` | a range that is not within the device |
//! | `EINTR` | killed, or (`ioctl` only) interrupted while it waited for its turn |
//! | `ENODEV` | the device has gone |
//! | `EIO`, `ENOSPC` | the device failed |
//!
//! With `ioctl` the result is in the structure, also after an error: then it says
//! how much was done before. A killed caller may leave the device at work.
//!
//! With io_uring the structure, its `result` 0, is in the `cmd` field of a 128-byte
//! submission entry (`IORING_SETUP_SQE128`) and [`IOC_COMMAND`] in `cmd_op`. The completion
//! has 0 or a negative errno in `res`, and the result in the first of the additional
//! words of a 32-byte entry (`IORING_SETUP_CQE32`); without these nobody learns it.
//!
//! # States
//!
//! A device that breaks the protocol is taken out of service: it is reset and stays so, because
//! nothing is known of what it would do. `IOC_RESET` (`ringbar reset`) is the way back,
//! and unbinding and binding the driver. A request that takes longer than the module parameter
//! `timeout_s` has the device reset as well, or four times as long while other requests of its
//! queue end. While the machine sleeps, calls wait.
//!
//! | call | in service | asleep, or being reset | out of service | removed |
//! |---|---|---|---|---|
//! | `open` | succeeds | succeeds | succeeds | `ENOENT`, `ENODEV` |
//! | read, write, [`IOC_COMMAND`], `fsync`; libaio, io_uring | executed | wait; `EAGAIN` where they must not | `EIO` | `ENODEV` |
//! | the same, in flight when the state begins | | asleep: go on afterwards; reset: `EIO` | `EIO` | `ENODEV` |
//! | `poll` | as there is room | waits | `POLLERR`, `POLLHUP` | `POLLERR`, `POLLHUP` |
//! | `mmap` of device memory | succeeds | waits for nothing: `ENODEV` | `ENODEV` | `ENODEV` |
//! | access to such a map that was there before | shows the memory | asleep: nobody runs; reset: `SIGBUS`, for good | `SIGBUS`, for good | `SIGBUS` |
//! | `mmap` of counters, log and rings | succeeds | succeeds | succeeds | `ENODEV` |
//! | [`IOC_INFO`] | [`STATE_IN_SERVICE`] | [`STATE_IN_SERVICE`], without [`CAP_MMAP`] | [`STATE_OUT_OF_SERVICE`], without [`CAP_MMAP`] | `ENODEV` |
//! | [`IOC_RESET`] | resets | waits, then resets | brings it back, or `EIO` | `ENODEV` |

/// Bit of the offset at which the selector begins.
pub const MAP_SHIFT: u32 = 56;

/// Device memory, write-combining.
pub const MAP_MEMORY: u64 = 0;
/// Device memory, uncached.
pub const MAP_MEMORY_UNCACHED: u64 = 1;
/// Device memory, cached.
pub const MAP_MEMORY_CACHED: u64 = 2;
/// Counters, 64 bits each: see the `COUNTER` constants for their places.
pub const MAP_STATISTICS: u64 = 3;
/// The event log.
pub const MAP_EVENTS: u64 = 4;
/// Used rings (VIRTIO 1.3, 2.7.8): queue `n` at `n *` [`USED_RING_STRIDE`].
pub const MAP_USED_RINGS: u64 = 5;

/// Distance of two used rings, in bytes.
pub const USED_RING_STRIDE: u64 = 1 << 20;

/// Place of the number of requests handed to the device.
pub const COUNTER_REQUESTS: usize = 0;
/// Place of the number of notifications of the device.
pub const COUNTER_DOORBELLS: usize = 1;
/// Place of the number of interrupts taken.
pub const COUNTER_INTERRUPTS: usize = 2;
/// Place of the number of data segments handed to the device. A contiguous piece of
/// memory is one, however many pages it has.
pub const COUNTER_SEGMENTS: usize = 3;

/// Pages of the event log.
pub const EVENT_LOG_PAGES: usize = 4;
/// 64-bit words of a record. Word 0 of the log is the number of records ever
/// written; record `n` is at word `EVENT_RECORD_WORDS * (1 + n % capacity)`, where
/// the capacity is what fits behind the first record's place. A record is: time in
/// nanoseconds since boot, kind, and two values.
pub const EVENT_RECORD_WORDS: usize = 4;

/// The device was started; value: bytes of device memory.
pub const EVENT_STARTED: u64 = 1;
/// The device memory has a new size; value: bytes.
pub const EVENT_CAPACITY: u64 = 2;
/// A queue broke; values: queue, 1 if the device said so and 0 if the driver
/// found out.
pub const EVENT_QUEUE_BROKEN: u64 = 3;
/// The device was taken out of service; value: errno.
pub const EVENT_STOPPED: u64 = 4;
/// The device was put to sleep with the machine.
pub const EVENT_SUSPENDED: u64 = 5;
/// The device was reset; what was in flight ended with `EIO`. Then follows
/// [`EVENT_STARTED`], or where it does not come back [`EVENT_STOPPED`]. Value: one of the
/// `RESET` constants.
pub const EVENT_RESET: u64 = 6;
/// A request took too long.
pub const RESET_BY_TIMEOUT: u64 = 0;
/// An administrator asked for it.
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

/// What the command writes is durable when it ends. For those that write.
pub const COMMAND_DURABLE: u32 = 1;

/// Device memory can be mapped. Bits below tell the opcodes: bit `n` is set where
/// the opcode of value `n` is executed.
pub const CAP_MMAP: u64 = 1 << 32;
/// Completions can be polled for (`IORING_SETUP_IOPOLL`) on a queue without
/// interrupts.
pub const CAP_IOPOLL: u64 = 1 << 33;

/// [`Info::state`]: the device works.
pub const STATE_IN_SERVICE: u32 = 0;
/// [`Info::state`]: the device has failed, and answers everything with `EIO` until it
/// is reset.
pub const STATE_OUT_OF_SERVICE: u32 = 1;

/// Type of the `ioctl` numbers.
pub const IOC_TYPE: u32 = 0xd7;
/// Fills in an [`Info`]. `_IOR(IOC_TYPE, 0, struct ringbar_info)`
pub const IOC_INFO: u32 = ioc(2, 0, Info::SIZE);
/// Executes a [`Command`] and waits for its end.
/// `_IOWR(IOC_TYPE, 1, struct ringbar_command)`
pub const IOC_COMMAND: u32 = ioc(3, 1, Command::SIZE);
/// Resets the device and puts it into service again; see the table of states. `EPERM`
/// without `CAP_SYS_ADMIN`, `EIO` where it does not come back. `_IO(IOC_TYPE, 2)`
pub const IOC_RESET: u32 = ioc(0, 2, 0);

/// As `_IOC` of `include/uapi/asm-generic/ioctl.h`.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    // CAST: Structures of less than 16 KiB.
    direction << 30 | (size as u32) << 16 | IOC_TYPE << 8 | number
}

/// `struct ringbar_info`: what there is to know of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Bits as of [`CAP_MMAP`].
    pub capabilities: u64,
    /// Bytes of device memory.
    pub capacity: u64,
    /// How many of them, from the start, can be mapped.
    pub aperture: u64,
    /// Bytes of the largest request. A call for more becomes several.
    pub max_request: u64,
    /// Bytes of the largest command that the device executes in one go. A command
    /// for more becomes several.
    pub max_command: u64,
    /// I/O queues in use.
    pub io_queues: u32,
    /// Most contiguous pieces of memory in one request.
    pub max_segments: u32,
    /// One of the `STATE` constants.
    pub state: u32,
}

impl Info {
    /// Size of the structure in bytes; the last 12 are reserved, and 0.
    pub const SIZE: usize = 64;

    /// The structure as C has it.
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

    /// The other way round.
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
    /// Where the range begins in the device memory.
    pub offset: u64,
    /// Bytes in the range.
    pub length: u64,
    /// As the opcode says.
    pub argument: u64,
    /// As the opcode says. Not looked at on the way in.
    pub result: u64,
}

impl Command {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 40;
    /// Where the result is in it.
    pub const RESULT_AT: usize = 32;

    /// The structure as C has it.
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

    /// The other way round.
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

/// `N` bytes from `at` on, which the callers' constants keep within the array.
fn array<const N: usize, const S: usize>(bytes: &[u8; S], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
