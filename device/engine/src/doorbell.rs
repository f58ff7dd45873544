// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Notifications from the driver to the device.
//!
//! A doorbell is a descriptor that the worker of a queue waits for, or a call of
//! [`crate::QueueControl::ring_doorbell`]. A worker that polls reads no descriptor, and a
//! call costs no system call meanwhile.

use std::io;
use std::os::fd::AsFd;

/// The doorbell of a queue as a descriptor, readable once the driver has rung it.
pub trait Doorbell: AsFd + Send {
    /// Makes the descriptor unreadable again. Returns whether the doorbell was rung; never
    /// blocks. After an error the queue is broken, because the descriptor may stay readable
    /// for ever.
    fn acknowledge(&self) -> io::Result<bool>;
}
