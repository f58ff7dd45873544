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
    /// What was tried and why it failed.
    Failed(String),
}
