// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device and the memory of a test.

use std::fs::File;

use crate::case::{Context, Verdict};
use crate::sys::{PAGE, Region};

/// Default offset of tests in the device memory.
pub(super) const SOMEWHERE: u64 = 5 << 20;

/// An open device, its map, and a buffer.
pub(super) struct Fixture {
    pub(super) file: File,
    pub(super) bar: Region,
    pub(super) memory: Region,
    pub(super) size: u64,
}

impl Fixture {
    pub(super) fn new(context: &Context) -> Verdict<Self> {
        Ok(Self {
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(16 * PAGE)?,
            size: context.size(),
        })
    }
}
