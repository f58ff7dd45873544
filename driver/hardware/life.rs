// SPDX-License-Identifier: GPL-2.0

//! Whether the device runs, and why not.

use crate::virtio::reset::Quiesced;

/// Whether the device runs.
///
/// ```text
///  Down(New) ---- start ----> Running ---- halt ----> Down(Asleep, OutOfService, Removed)
///                                ^  |                    |
///                                |  +-- halt fails --> Unstoppable
///                                +------ start ----------+ (unless Removed)
/// ```
pub(crate) enum Life {
    /// The device has been reset or quiesced. Its memory belongs to the driver.
    Down(Quiesced, DownReason),
    /// The device runs, or the driver is starting it.
    Running,
    /// The device cannot be stopped. The memory that it knows belongs to it for ever.
    Unstoppable,
}

/// The reason why a device is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DownReason {
    /// The device has not been started yet.
    New,
    /// The machine sleeps.
    Asleep,
    /// The device has failed, or is being reset.
    OutOfService,
    /// The driver is being unbound: the device is not started again.
    Removed,
}

/// The result of a start.
pub(crate) struct Started {
    /// Whether the device memory is behind the aperture.
    pub(crate) mapped: bool,
    /// Size of the device memory in bytes.
    pub(crate) capacity: u64,
}
