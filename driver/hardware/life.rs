// SPDX-License-Identifier: GPL-2.0

//! Whether the device runs, and what has become of it.

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
    /// It has been reset. The memory that it was given belongs to the driver.
    Down(Quiesced, Why),
    /// It runs, or has been asked to.
    Running,
    /// It cannot be stopped. What it was given is its own for ever.
    Unstoppable,
}

/// Why a device is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It has not been started yet.
    New,
    /// The machine sleeps.
    Asleep,
    /// It has failed, or is being reset.
    OutOfService,
    /// The driver is being unbound: it is not started again.
    Removed,
}

/// What has become of a device that was started.
pub(crate) struct Started {
    /// Whether the device memory is behind the aperture.
    pub(crate) mapped: bool,
    /// Bytes of device memory.
    pub(crate) capacity: u64,
}
