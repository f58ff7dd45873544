// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests of a test program in the guest to the harness on the host.
//!
//! The frames are those of the agent port. The host answers each [`HostRequest`] with one
//! [`HostReply`], in order.
//!
//! While a device is stalled, any access that makes QEMU wait for the device blocks the
//! whole guest: reading the configuration space or writing the device status, and so
//! binding and unbinding the driver. Doorbells, data and interrupts do not.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "org.ringbar.host";

/// From the guest to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRequest {
    /// Stop the process of the device with this number, in the order of QEMU's command
    /// line. Answered when all its threads have stopped.
    StallDevice(u32),
    /// Resume the process of the device. Answered when it runs; a running device is not
    /// an error.
    ResumeDevice(u32),
    /// Change the size of the device memory to a number of bytes. Answered when the
    /// device has the new size and has notified its driver, which may not have handled
    /// the event yet.
    ResizeDevice(u32, u64),
    /// Count the pages behind a range of the device memory that are not on the disk yet.
    /// The device must have file storage. Answered with [`HostReply::Unwritten`].
    CountUnwritten(u32, ByteRange),
    /// Prepare a lie of the device. Answered when it is prepared.
    Lie(u32, Lie),
    /// Cancel the pending lies of the device and end the lasting ones.
    EndLies(u32),
    /// Count the lies that the device has told. Answered with [`HostReply::Count`].
    CountLies(u32),
    /// Kill the NBD server that holds the memory of the device. Answered when it is gone.
    KillServer(u32),
    /// Add a rule for faults of the device (docs/faults.md). Answered when requests are compared with
    /// it.
    AddFault(u32, String),
    /// List the rules for faults of the device. Answered with [`HostReply::Faults`].
    ListFaults(u32),
    /// Clear the rules for faults of the device.
    ClearFaults(u32),
    /// A command to the PCI function with this number. Functions are numbered separately
    /// from devices.
    Function(u32, FunctionCommand),
    /// Kill the process of the device that executes the requests, which has a supervisor.
    /// Answered when another process has been started.
    KillWorker(u32),
    /// Have the process that executes the requests replaced by the installed program.
    /// Answered when that has been started.
    UpgradeDevice(u32),
}

/// Commands to the PCI function for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionCommand {
    /// Whether resets are delayed: the device keeps running, and its status shows that. A
    /// delayed reset is executed when the delay ends.
    DelayReset(bool),
    /// Whether I/O requests stay pending without an answer. The function keeps writing to
    /// the memory of pending requests until a reset, or until the driver disables bus
    /// mastering.
    KeepRequestsPending(bool),
    /// Put an id that does not exist into the used ring of the first I/O queue.
    BreakQueue,
    /// Override the value of a register of the common configuration, given by its offset.
    OverrideRegister(u8, u32),
    /// Change the capacity, and with it the configuration generation, after the driver
    /// has read half of the capacity.
    ChangeCapacityOnRead(u64),
    /// Restore the original registers and configuration.
    RestoreRegisters,
}

/// The queues that a lie is about. The next used entry of such a queue is falsified; on
/// the event queue it is a made-up event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LieQueue {
    /// The control queue.
    Control,
    /// The event queue.
    Event,
    /// Any I/O queue.
    Io,
}

/// False statements of a device. Each one is made once, unless stated otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lie {
    /// A false used entry.
    Used(LieQueue, UsedLie),
    /// An event with these bytes.
    Event([u8; 32]),
    /// A number of events with these bytes, as fast as the driver provides buffers, until
    /// the queue is restarted.
    EventFlood(u32, [u8; 32]),
    /// Interrupts of an I/O queue for a number of milliseconds, one after the other,
    /// although no request has ended.
    InterruptStorm(u32),
    /// Other bytes in the configuration space, until [`HostRequest::EndLies`].
    Config {
        /// Offset of the first byte.
        offset: u16,
        /// Number of bytes, at most 8.
        length: u8,
        /// The bytes, of which `length` count.
        bytes: [u8; 8],
    },
    /// Delay the next stop of the device, which a reset waits for, by a number of
    /// milliseconds.
    SlowStop(u32),
}

/// False statements about a used entry.
///
/// After the first four, the queue is broken: it returns no more entries until it is
/// restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UsedLie {
    /// The used index is this much too high.
    IndexAhead(u16),
    /// The entry has this id.
    Id(u32),
    /// The entry appears twice.
    Twice,
    /// The entry has an id below the size of the ring that is not in flight.
    NotInFlight,
    /// The entry has this length.
    Length(u32),
    /// No status was written.
    StatusUnwritten,
    /// The status is this one.
    Status {
        /// Code of the status.
        code: u32,
        /// Result in the status.
        result: u64,
    },
    /// The request is never used, though it was executed.
    Never,
}

/// A rule for faults with its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFault {
    /// The rule, in its shortest form.
    pub rule: String,
    /// Number of requests, or occasions of queues, that it was about.
    pub matches: u64,
    /// Number of these that had the effect.
    pub firings: u64,
}

/// A range of the device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostReply {
    /// The request was executed.
    Done,
    /// Number of pages that are dirty or under writeback.
    Unwritten(u64),
    /// The requested number.
    Count(u64),
    /// The rules for faults, in the order in which they were added.
    Faults(Vec<ListedFault>),
    /// The request failed, with the operation and its error.
    Failed(String),
    /// The host lacks support for the request.
    Unsupported(String),
}
