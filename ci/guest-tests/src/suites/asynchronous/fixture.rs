// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device and the buffers of a test.

use std::fs::File;
use std::time::Duration;

use crate::case::{Context, Verdict, expect_bytes};
use crate::pattern;
use crate::sys::{IoVec, Region};

/// Requests in flight.
pub(super) const DEPTH: usize = 32;

/// Bytes of each request in the plain depth tests.
pub(super) const BLOCK: usize = 4096;

/// Timeout for results.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// The device and buffers of a test.
pub(super) struct Fixture {
    pub(super) file: File,
    pub(super) bar: Region,
    pub(super) memory: Region,
}

impl Fixture {
    /// Creates buffers of `length` bytes in all.
    pub(super) fn new(context: &Context, length: usize) -> Verdict<Self> {
        Ok(Self {
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(length)?,
        })
    }

    /// Buffer number `i`.
    pub(super) fn block(&self, i: usize) -> IoVec {
        self.memory.buffer(i * BLOCK, BLOCK)
    }

    /// Fills each buffer with its own test data.
    pub(super) fn fill_blocks(&self, seed: u64) {
        for i in 0..DEPTH {
            let data = pattern::bytes(seed + i as u64, BLOCK);
            self.memory.store(i * BLOCK, data);
        }
    }

    /// Offset of buffer `i` in the device: neither in order nor aligned.
    pub(super) fn place(i: usize) -> u64 {
        ((i * 7) % DEPTH) as u64 * (BLOCK as u64 + 513) + 3
    }

    /// Checks the data of each buffer in the device.
    pub(super) fn expect_in_device(&self, seed: u64) -> Verdict {
        for i in 0..DEPTH {
            let seen = self.bar.load(Self::place(i) as usize, BLOCK);
            let data = pattern::bytes(seed + i as u64, BLOCK);
            expect_bytes(&seen, data, &format!("block {i} in the device"))?;
        }
        Ok(())
    }

    /// Stores test data in the device and clears the buffers.
    pub(super) fn fill_device(&self, seed: u64) {
        for i in 0..DEPTH {
            let data = pattern::bytes(seed + i as u64, BLOCK);
            self.bar.store(Self::place(i) as usize, data);
        }
        self.memory.fill(0, DEPTH * BLOCK, 0);
    }

    /// Checks the device's data in each buffer.
    pub(super) fn expect_in_memory(&self, seed: u64) -> Verdict {
        for i in 0..DEPTH {
            let seen = self.memory.load(i * BLOCK, BLOCK);
            let data = pattern::bytes(seed + i as u64, BLOCK);
            expect_bytes(&seen, data, &format!("block {i} in memory"))?;
        }
        Ok(())
    }
}
