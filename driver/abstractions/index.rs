// SPDX-License-Identifier: GPL-2.0

//! The numbers of the module's devices.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    }, //
};

/// The number in the name of a device node, the lowest that is free.
pub(crate) struct DeviceIndex(u32);

/// Numbers in use, a bit each.
static NUMBERS: Atomic<u64> = Atomic::new(0);

impl DeviceIndex {
    /// Takes a number. `ENOSPC` if there are 64 devices.
    pub(crate) fn take() -> Result<Self> {
        let mut used = NUMBERS.load(Relaxed);
        loop {
            let number = used.trailing_ones();
            if number == u64::BITS {
                return Err(ENOSPC);
            }
            match NUMBERS.cmpxchg(used, used | 1 << number, Full) {
                Ok(_) => return Ok(Self(number)),
                Err(now) => used = now,
            }
        }
    }

    /// The number, below 64.
    pub(crate) fn get(&self) -> u32 {
        self.0
    }
}

impl Drop for DeviceIndex {
    fn drop(&mut self) {
        let mut used = NUMBERS.load(Relaxed);
        while let Err(now) = NUMBERS.cmpxchg(used, used & !(1 << self.0), Full) {
            used = now;
        }
    }
}
