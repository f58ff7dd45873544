// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note

//! What user space relies on. The C header is `uapi/ringbar.h`.
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
//! | [`MAP_MEMORY_CACHED`] | device memory, cached; only sound while it is RAM, as in a virtual machine | read and write |
//! | [`MAP_STATISTICS`] | one page of counters | read |
//! | [`MAP_EVENTS`] | the log of what happened to the device | read |
//! | [`MAP_USED_RINGS`] | used rings of the queues, [`USED_RING_STRIDE`] bytes apart | read |

/// Bit of the offset at which the selector begins.
pub(crate) const MAP_SHIFT: u32 = 56;

/// Device memory, write-combining.
pub(crate) const MAP_MEMORY: u64 = 0;
/// Device memory, uncached.
pub(crate) const MAP_MEMORY_UNCACHED: u64 = 1;
/// Device memory, cached.
pub(crate) const MAP_MEMORY_CACHED: u64 = 2;
/// Counters, 64 bits each: see the `COUNTER` constants for their places.
pub(crate) const MAP_STATISTICS: u64 = 3;
/// The event log.
pub(crate) const MAP_EVENTS: u64 = 4;
/// Used rings (VIRTIO 1.3, 2.7.8): queue `n` at `n *` [`USED_RING_STRIDE`].
pub(crate) const MAP_USED_RINGS: u64 = 5;

/// Distance of two used rings, in bytes.
pub(crate) const USED_RING_STRIDE: u64 = 1 << 20;

/// Place of the number of requests handed to the device.
pub(crate) const COUNTER_REQUESTS: usize = 0;
/// Place of the number of notifications of the device.
pub(crate) const COUNTER_DOORBELLS: usize = 1;
/// Place of the number of interrupts taken.
pub(crate) const COUNTER_INTERRUPTS: usize = 2;

/// Pages of the event log.
pub(crate) const EVENT_LOG_PAGES: usize = 4;
/// 64-bit words of a record. Word 0 of the log is the number of records ever
/// written; record `n` is at word `EVENT_RECORD_WORDS * (1 + n % capacity)`, where
/// the capacity is what fits behind the first record's place. A record is: time in
/// nanoseconds since boot, kind, and two values.
pub(crate) const EVENT_RECORD_WORDS: usize = 4;

/// The device was started; value: bytes of device memory.
pub(crate) const EVENT_STARTED: u64 = 1;
/// The device memory has a new size; value: bytes.
pub(crate) const EVENT_CAPACITY: u64 = 2;
/// A queue broke; values: queue, 1 if the device said so and 0 if the driver
/// found out.
pub(crate) const EVENT_QUEUE_BROKEN: u64 = 3;
/// The device was taken out of service; value: errno.
pub(crate) const EVENT_STOPPED: u64 = 4;
