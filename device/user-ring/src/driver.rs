// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The side of the driver, which wakes what sleeps. It takes part only where a side sleeps.

use core::sync::atomic::Ordering::Relaxed;

use crate::layout::{ARMED, COMPLETED, Entries, KERNEL_WORDS, NEED_WAKEUP, Position};
use crate::sync::SyncPoint;
use crate::words::{AreaTooSmall, Words, WriteWords, check_size};

/// The driver's part of a queue: `D` is the device area, `K` the queue's line of the kernel
/// area. Waits of several threads on one queue need a lock around it.
#[derive(Debug)]
pub struct Waiter<D, K> {
    device: D,
    kernel: K,
    entries: Entries,
    armed: u64,
}

/// What a wait has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a wait that does not sleep returns to the process"]
pub enum Wait {
    /// Enough completions are there.
    Ready,
    /// Sleep until the interrupt, then ask again.
    Sleep,
}

impl<D: Words, K: WriteWords> Waiter<D, K> {
    /// For a queue that the device does not know yet.
    pub fn new(device: D, kernel: K, entries: Entries) -> Result<Self, AreaTooSmall> {
        check_size("device", &device, entries.device_words())?;
        check_size("kernel", &kernel, KERNEL_WORDS)?;
        // The device begins with the same number.
        kernel.store(ARMED, 0, Relaxed);
        Ok(Self {
            device,
            kernel,
            entries,
            armed: 0,
        })
    }

    /// Whether the device sleeps and its doorbell must be rung. The process has submitted
    /// before.
    pub fn needs_doorbell(&self) -> bool {
        // The process that asked for the kick has seen the same word behind its fence; a device
        // that has woken since needs none.
        self.device.load(NEED_WAKEUP, Relaxed) != 0
    }

    /// Asks for an interrupt, then looks whether `min` completions after `reaped` are there. To
    /// be called before each sleep, because an interrupt uses up the request for it.
    ///
    /// Both numbers are the process's. A number that has no meaning makes the wait last until
    /// it is interrupted, which harms the caller only. More completions than the ring has
    /// entries can never be there, so `min` is cut to that.
    pub fn wait(&mut self, reaped: Position, min: u32) -> Wait {
        self.armed = self.armed.wrapping_add(1);
        self.kernel.store(ARMED, self.armed, Relaxed);
        SyncPoint::WaitFence.fence();
        let completed = self
            .device
            .load(COMPLETED, SyncPoint::LoadCompleted.ordering());
        // Signed: within a turn of the device the process can have reaped more than
        // `completed` says.
        let ready = Position::new(completed).since(reaped) as i64;
        let min = i64::from(min).min(self.entries.get() as i64);
        if ready >= min {
            Wait::Ready
        } else {
            Wait::Sleep
        }
    }
}
