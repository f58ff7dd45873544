// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Registers of a PCI function, through a map of its BAR.

use std::fs::File;
use std::io;

use super::memory::Region;

/// A map of a BAR. Each access is one access of the CPU, of its width.
#[derive(Debug)]
pub struct Registers(Region);

impl Registers {
    /// Maps the first `length` bytes of `resourceN` of a function.
    pub fn map(resource: &File, length: usize) -> io::Result<Self> {
        Region::shared(resource, 0, length).map(Self)
    }

    /// Reads a byte.
    pub fn read8(&self, offset: usize) -> u8 {
        let from = self.0.at(offset, 1);
        // SAFETY: `from` is valid for a byte.
        unsafe { from.read_volatile() }
    }

    /// Reads two bytes.
    pub fn read16(&self, offset: usize) -> u16 {
        let from = self.aligned(offset, 2).cast::<u16>();
        // SAFETY: `from` is valid for two bytes, and aligned.
        unsafe { from.read_volatile() }
    }

    /// Reads four bytes.
    pub fn read32(&self, offset: usize) -> u32 {
        let from = self.aligned(offset, 4).cast::<u32>();
        // SAFETY: `from` is valid for four bytes, and aligned.
        unsafe { from.read_volatile() }
    }

    /// Writes a byte.
    pub fn write8(&self, offset: usize, value: u8) {
        let to = self.0.at(offset, 1);
        // SAFETY: `to` is valid for a byte.
        unsafe { to.write_volatile(value) }
    }

    /// Writes two bytes.
    pub fn write16(&self, offset: usize, value: u16) {
        let to = self.aligned(offset, 2).cast::<u16>();
        // SAFETY: `to` is valid for two bytes, and aligned.
        unsafe { to.write_volatile(value) }
    }

    /// Writes four bytes.
    pub fn write32(&self, offset: usize, value: u32) {
        let to = self.aligned(offset, 4).cast::<u32>();
        // SAFETY: `to` is valid for four bytes, and aligned.
        unsafe { to.write_volatile(value) }
    }

    fn aligned(&self, offset: usize, width: usize) -> *mut u8 {
        assert!(offset.is_multiple_of(width), "{width} bytes at {offset:#x}");
        self.0.at(offset, width)
    }
}
