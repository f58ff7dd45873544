// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The configuration space (PCI Express 6.0, 7.5).

use crate::layout::{MSIX_BAR, REGISTER_BAR, REGISTER_BAR_BYTES, SHARED_BAR};
use crate::{Description, Identity, Interrupts, capability, msix};

/// Bytes of the configuration space of a PCI Express function.
pub(crate) const BYTES: usize = 0x1000;

/// Bytes of the part that has the header and the capabilities. The rest is for extended
/// capabilities; the function has none.
const PCI_BYTES: usize = 0x100;

/// Registers of the header (7.5.1).
mod header {
    pub(super) const VENDOR: usize = 0x00;
    pub(super) const DEVICE: usize = 0x02;
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const STATUS: usize = 0x06;
    pub(super) const REVISION: usize = 0x08;
    pub(super) const CLASS: usize = 0x09;
    pub(super) const CACHE_LINE_SIZE: usize = 0x0c;
    pub(super) const BAR0: usize = 0x10;
    pub(super) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(super) const SUBSYSTEM: usize = 0x2e;
    pub(super) const CAPABILITIES: usize = 0x34;
    pub(super) const INTERRUPT_LINE: usize = 0x3c;
    pub(super) const INTERRUPT_PIN: usize = 0x3d;
    /// First byte behind the header.
    pub(super) const END: usize = 0x40;
}

/// Bits of the command register.
mod command {
    pub(super) const BUS_MASTER: u16 = 1 << 2;
    pub(super) const INTX_DISABLE: u16 = 1 << 10;
    /// Those above, memory space, parity error response, and SERR#.
    pub(super) const WRITABLE: u16 = BUS_MASTER | INTX_DISABLE | 1 << 1 | 1 << 6 | 1 << 8;
}

/// The status bit "capabilities list".
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Bits of a BAR: 64-bit address, prefetchable.
const BAR_64: u64 = 1 << 2;
const BAR_PREFETCHABLE: u64 = 1 << 3;

/// The bytes of the configuration space, and which of their bits can be written.
#[derive(Debug)]
struct Bytes {
    value: [u8; BYTES],
    writable: [u8; BYTES],
}

impl Bytes {
    fn put(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        self.value[at..at + value.len()].copy_from_slice(value);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }

    /// A register that cannot be written.
    fn put_constant(&mut self, at: usize, value: &[u8]) {
        self.put(at, value, &[]);
    }
}

/// An access to a BAR by means of configuration space (VIRTIO 1.3, 4.1.4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowAccess {
    /// Index of the BAR.
    pub(crate) bar: u8,
    /// First byte in the BAR, a multiple of `length`.
    pub(crate) offset: u32,
    /// Number of bytes: 1, 2, or 4.
    pub(crate) length: usize,
}

/// The configuration space.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Box<Bytes>,
    /// The values after power-on.
    initial: Box<[u8; BYTES]>,
    /// Offsets of capabilities.
    express: usize,
    window: usize,
}

impl ConfigSpace {
    /// The configuration space after power-on.
    pub(crate) fn new(description: &Description) -> Self {
        let mut bytes = Box::new(Bytes {
            value: [0; BYTES],
            writable: [0; BYTES],
        });
        put_header(&mut bytes, description.identity);
        put_bars(&mut bytes, description);

        // The pointer to the next capability: first that of the header.
        let mut link = header::CAPABILITIES;
        let mut at = header::END;
        let (mut express, mut window) = (0, 0);
        for capability in capability::all(description) {
            bytes.put_constant(link, &[at as u8]);
            bytes.put(at, &capability.value, &capability.writable);
            match capability.kind {
                capability::Kind::Express => express = at,
                capability::Kind::Window => window = at,
                capability::Kind::Other => {}
            }
            link = at + 1;
            at = (at + capability.value.len()).next_multiple_of(4);
        }
        debug_assert!(at <= PCI_BYTES, "capabilities end at {at:#x}");
        Self {
            initial: Box::new(bytes.value),
            bytes,
            express,
            window,
        }
    }

    /// Sets all registers to their values after power-on.
    pub(crate) fn reset(&mut self) {
        self.bytes.value = *self.initial;
    }

    /// Reads at `offset`; the access lies within the space.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.bytes.value[offset..offset + data.len()]);
    }

    /// Writes the writable bits at `offset`; the access lies within the space. Returns whether the
    /// driver has initiated a function level reset, which is the caller's to do.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let range = offset..offset + data.len();
        let value = &mut self.bytes.value[range.clone()];
        let writable = &self.bytes.writable[range];
        for ((byte, &mask), &new) in value.iter_mut().zip(writable).zip(data) {
            *byte = *byte & !mask | new & mask;
        }
        let at = self.express + capability::DEVICE_CONTROL + 1;
        at.checked_sub(offset)
            .and_then(|at| data.get(at))
            .is_some_and(|byte| byte & capability::INITIATE_RESET != 0)
    }

    fn command(&self) -> u16 {
        let at = header::COMMAND;
        u16::from_le_bytes([self.bytes.value[at], self.bytes.value[at + 1]])
    }

    /// Whether the function may access memory.
    pub(crate) fn is_bus_master(&self) -> bool {
        self.command() & command::BUS_MASTER != 0
    }

    /// Whether the function must not assert INTx.
    pub(crate) fn is_intx_disabled(&self) -> bool {
        self.command() & command::INTX_DISABLE != 0
    }

    /// The access to a BAR that an access to configuration space requires: the one that the
    /// driver has set up, if this access touches its data and it is possible.
    pub(crate) fn window_access(&self, offset: usize, length: usize) -> Option<WindowAccess> {
        let data = self.window + capability::WINDOW_DATA;
        if offset >= data + capability::WINDOW_DATA_BYTES || offset + length <= data {
            return None;
        }
        let word = |at| {
            let mut word = [0; 4];
            self.read(self.window + at, &mut word);
            u32::from_le_bytes(word)
        };
        let length = word(capability::VIRTIO_LENGTH);
        let access = WindowAccess {
            bar: self.bytes.value[self.window + capability::VIRTIO_BAR],
            offset: word(capability::VIRTIO_OFFSET),
            // CAST: From 32 bits.
            length: length as usize,
        };
        (matches!(length, 1 | 2 | 4) && access.offset.is_multiple_of(length)).then_some(access)
    }

    /// The data of the window, of which an access uses the first bytes.
    pub(crate) fn window_data(&mut self) -> &mut [u8] {
        let at = self.window + capability::WINDOW_DATA;
        &mut self.bytes.value[at..at + capability::WINDOW_DATA_BYTES]
    }
}

fn put_header(bytes: &mut Bytes, identity: Identity) {
    bytes.put_constant(header::VENDOR, &identity.vendor.to_le_bytes());
    bytes.put_constant(header::DEVICE, &identity.device.to_le_bytes());
    bytes.put(header::COMMAND, &[0; 2], &command::WRITABLE.to_le_bytes());
    bytes.put_constant(header::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
    bytes.put_constant(header::REVISION, &[identity.revision]);
    bytes.put_constant(header::CLASS, &identity.class.to_le_bytes()[..3]);
    // Has no effect on a PCI Express function, but can be written (7.5.1.1.7).
    bytes.put(header::CACHE_LINE_SIZE, &[0], &[0xff]);
    bytes.put_constant(
        header::SUBSYSTEM_VENDOR,
        &identity.subsystem_vendor.to_le_bytes(),
    );
    bytes.put_constant(header::SUBSYSTEM, &identity.subsystem.to_le_bytes());
    bytes.put(header::INTERRUPT_LINE, &[0], &[0xff]);
    // INTA.
    bytes.put_constant(header::INTERRUPT_PIN, &[1]);
}

fn put_bars(bytes: &mut Bytes, description: &Description) {
    // The address bits below the size cannot be written: so the driver finds the size.
    let mut put = |bar: u8, size: u64, flags: u64| {
        let at = header::BAR0 + 4 * usize::from(bar);
        let length = if flags & BAR_64 != 0 { 8 } else { 4 };
        bytes.put(
            at,
            &flags.to_le_bytes()[..length],
            &(!(size - 1)).to_le_bytes()[..length],
        );
    };
    if let Interrupts::MsiX { vectors } = description.interrupts {
        put(MSIX_BAR, msix::bar_bytes(vectors), 0);
    }
    put(REGISTER_BAR, REGISTER_BAR_BYTES, 0);
    if let Some(size) = description.shared_region {
        put(SHARED_BAR, size, BAR_64 | BAR_PREFETCHABLE);
    }
}
