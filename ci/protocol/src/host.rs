// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a test program in the guest asks of the harness on the host.
//!
//! The frames are those of the agent port. The guest asks, the host answers each
//! [`HostRequest`] with one [`HostReply`], in order.
//!
//! While a device is stalled, whatever makes QEMU talk to it and wait blocks the
//! whole guest: reading the configuration space, writing the device status, so
//! also binding and unbinding the driver. Doorbells, data and interrupts do not.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "org.ringbar.host";

/// From the guest to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRequest {
    /// Stop the process of the device of this number, in the order of QEMU's
    /// command line. Answered when none of its threads runs any more.
    StallDevice(u32),
    /// Let it run again. Answered when it does; a device that runs is no error.
    ResumeDevice(u32),
    /// Give the memory of the device of this number so many bytes. Answered when
    /// the device has them and has told its driver, which may not have looked yet.
    ResizeDevice(u32, u64),
    /// Count the pages behind a range of the memory of the device of this number,
    /// which keeps it in a file, that are not on the disk yet. Answered with
    /// [`HostReply::Unwritten`].
    CountUnwritten(u32, ByteRange),
    /// Have the device of this number lie. Answered when it is prepared to.
    Lie(u32, Lie),
    /// Forget the lies of the device of this number that were not told yet, and end
    /// those that last.
    EndLies(u32),
    /// How many lies the device of this number has told; answered with
    /// [`HostReply::Count`].
    CountLies(u32),
    /// Have the PCI function of this number, counted apart from the devices, do what its
    /// driver does not expect.
    Function(u32, FunctionCommand),
}

/// What a PCI function that is made for tests is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionCommand {
    /// Whether a reset is held back: the device goes on as before, and its status says
    /// so. A reset that was held back comes when this ends.
    DelayReset(bool),
    /// Whether I/O requests are kept without an answer. The memory of those that were
    /// kept is written to until a reset, or until the driver forbids DMA.
    KeepRequestsPending(bool),
    /// Use an entry of the first I/O queue that does not exist.
    BreakQueue,
    /// A register of the common configuration, by its offset, reads as this.
    OverrideRegister(u8, u32),
    /// The capacity in the device configuration becomes this when half of it has been
    /// read, and the generation of the configuration changes with it.
    ChangeCapacityOnRead(u64),
    /// Registers and configuration are the device's again.
    RestoreRegisters,
}

/// Which queues' used entries a lie is about. The next used entry of such a queue is
/// falsified; on the event queue that is an event that the lie makes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LieQueue {
    /// The control queue.
    Control,
    /// The event queue.
    Event,
    /// Any I/O queue.
    Io,
}

/// What a device says that is not so. Each lie is told once, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lie {
    /// About a used entry.
    Used(LieQueue, UsedLie),
    /// An event with these bytes.
    Event([u8; 32]),
    /// So many events with these bytes, as fast as the driver provides buffers. A
    /// restart of the queue ends them.
    EventFlood(u32, [u8; 32]),
    /// Interrupts of an I/O queue for so many milliseconds, one after the other,
    /// though no request has ended.
    InterruptStorm(u32),
    /// Until [`HostRequest::EndLies`] the configuration space has these bytes at this
    /// offset, of which so many count.
    Config {
        /// Offset of the first byte.
        offset: u16,
        /// Number of bytes, at most 8.
        length: u8,
        /// The bytes.
        bytes: [u8; 8],
    },
    /// The next stop of the device, which is what a reset waits for, takes so many
    /// milliseconds.
    SlowStop(u32),
}

/// What a device says of a used entry that is not so.
///
/// After the first four the queue is dead: nothing more comes from it until it is
/// started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UsedLie {
    /// The used index goes ahead by this beyond what was used.
    IndexAhead(u16),
    /// The entry has this id.
    Id(u32),
    /// The entry comes twice.
    Twice,
    /// The entry has an id below the size of the ring that is not in flight.
    NotInFlight,
    /// The device says to have written so many bytes.
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

/// Bytes of the device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// Where they begin.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostReply {
    /// The request was carried out.
    Done,
    /// So many pages are dirty or being written.
    Unwritten(u64),
    /// The number that was asked for.
    Count(u64),
    /// What was tried and why it failed.
    Failed(String),
    /// What the host lacks for it.
    Unsupported(String),
}
