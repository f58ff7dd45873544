// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The capabilities in configuration space.

use crate::layout::{
    COMMON, DEVICE, INTERRUPT_STATUS, MSIX_BAR, NOTIFY, NOTIFY_MULTIPLIER, Part, REGISTER_BAR,
    SHARED_BAR,
};
use crate::{Description, Interrupts, msix};

/// Ids of capabilities (PCI Code and ID Assignment Specification).
const ID_MSI: u8 = 0x05;
const ID_VENDOR: u8 = 0x09;
const ID_EXPRESS: u8 = 0x10;
const ID_MSIX: u8 = 0x11;

/// The device control register in the PCI Express capability, and the bit of its second byte
/// that initiates a function level reset (PCI Express 6.0, 7.5.3.4).
pub(crate) const DEVICE_CONTROL: usize = 0x08;
pub(crate) const INITIATE_RESET: u8 = 1 << 7;

/// Types of VIRTIO capabilities (VIRTIO 1.3, 4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_INTERRUPT_STATUS: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_WINDOW: u8 = 5;
const TYPE_SHARED_MEMORY: u8 = 8;

/// Offsets of the fields of a VIRTIO capability (`struct virtio_pci_cap`), and its length.
pub(crate) const VIRTIO_BAR: usize = 4;
pub(crate) const VIRTIO_OFFSET: usize = 8;
pub(crate) const VIRTIO_LENGTH: usize = 12;
const VIRTIO_BYTES: usize = 16;

/// The data of the access by means of configuration space, behind the fields above.
pub(crate) const WINDOW_DATA: usize = VIRTIO_BYTES;
pub(crate) const WINDOW_DATA_BYTES: usize = 4;

/// Capabilities that the function has to find again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// PCI Express.
    Express,
    /// VIRTIO access by means of configuration space.
    Window,
    /// Another.
    Other,
}

/// A capability: its bytes, with 0 as its pointer to the next, and their writable bits.
#[derive(Debug)]
pub(crate) struct Capability {
    pub(crate) kind: Kind,
    pub(crate) value: Vec<u8>,
    pub(crate) writable: Vec<u8>,
}

impl Capability {
    fn new(kind: Kind, value: Vec<u8>) -> Self {
        Self {
            kind,
            writable: vec![0; value.len()],
            value,
        }
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }
}

/// The capabilities, in the order of the list.
pub(crate) fn all(description: &Description) -> Vec<Capability> {
    let mut all = vec![express()];
    match description.interrupts {
        Interrupts::MsiX { vectors } => all.push(msix(vectors)),
        Interrupts::Msi { vectors } => all.push(msi(vectors)),
        Interrupts::IntxOnly => {}
    }
    all.push(virtio(TYPE_COMMON, COMMON, &[]));
    let notify = NOTIFY.with_bytes(u64::from(description.queues) * u64::from(NOTIFY_MULTIPLIER));
    all.push(virtio(
        TYPE_NOTIFY,
        notify,
        &NOTIFY_MULTIPLIER.to_le_bytes(),
    ));
    all.push(virtio(TYPE_INTERRUPT_STATUS, INTERRUPT_STATUS, &[]));
    if description.config_bytes > 0 {
        let device = DEVICE.with_bytes(description.config_bytes.into());
        all.push(virtio(TYPE_DEVICE, device, &[]));
    }
    all.push(window());
    if let Some(size) = description.shared_region {
        all.push(shared_memory(size));
    }
    all
}

/// The PCI Express capability, version 2, of an endpoint that can reset its function
/// (PCI Express 6.0, 7.5.3).
fn express() -> Capability {
    const BYTES: usize = 0x3c;
    const VERSION: u8 = 2;
    /// Device capabilities: role-based error reporting, function level reset.
    const DEVICE_CAPABILITIES: u32 = 1 << 15 | 1 << 28;
    /// Device control: no snoop, 512 bytes as greatest read request, relaxed ordering: the values
    /// after power-on.
    const DEVICE_CONTROL_VALUE: u16 = 0x2810;
    /// All bits but those of features that the function lacks and of the reset, which reads 0.
    const DEVICE_CONTROL_WRITABLE: u16 = 0x78ff;
    /// Link capabilities and status: 2.5 GT/s, one lane.
    const LINK: u16 = 0x0011;
    const LINK_CAPABILITIES: usize = 0x0c;
    const LINK_CONTROL: usize = 0x10;
    /// Link control: ASPM, read completion boundary, common clock, extended synch.
    const LINK_CONTROL_WRITABLE: u16 = 0x00cb;
    const LINK_STATUS: usize = 0x12;
    const LINK_CAPABILITIES_2: usize = 0x2c;
    const LINK_SPEEDS_2: u8 = 1 << 1;
    const LINK_CONTROL_2: usize = 0x30;
    const LINK_TARGET_SPEED: u8 = 1;

    let mut value = vec![0; BYTES];
    value[0] = ID_EXPRESS;
    value[2] = VERSION;
    value[4..8].copy_from_slice(&DEVICE_CAPABILITIES.to_le_bytes());
    value[DEVICE_CONTROL..][..2].copy_from_slice(&DEVICE_CONTROL_VALUE.to_le_bytes());
    value[LINK_CAPABILITIES..][..2].copy_from_slice(&LINK.to_le_bytes());
    value[LINK_STATUS..][..2].copy_from_slice(&LINK.to_le_bytes());
    value[LINK_CAPABILITIES_2] = LINK_SPEEDS_2;
    value[LINK_CONTROL_2] = LINK_TARGET_SPEED;

    let mut express = Capability::new(Kind::Express, value);
    express.allow(DEVICE_CONTROL, &DEVICE_CONTROL_WRITABLE.to_le_bytes());
    express.allow(LINK_CONTROL, &LINK_CONTROL_WRITABLE.to_le_bytes());
    express
}

/// MSI-X with table and pending bits in the BAR for it (PCI Express 6.0, 7.7.2).
fn msix(vectors: u16) -> Capability {
    /// Message control: enable, function mask.
    const WRITABLE: u16 = 0xc000;
    let mut value = vec![ID_MSIX, 0];
    value.extend((vectors - 1).to_le_bytes());
    value.extend(u32::from(MSIX_BAR).to_le_bytes());
    value.extend((msix::pending_offset(vectors) | u32::from(MSIX_BAR)).to_le_bytes());
    let mut msix = Capability::new(Kind::Other, value);
    msix.allow(2, &WRITABLE.to_le_bytes());
    msix
}

/// MSI with 64-bit addresses and without masks (PCI Express 6.0, 7.7.1).
fn msi(vectors: u16) -> Capability {
    const BYTES: usize = 14;
    /// Message control: 64-bit addresses; enable and number of used vectors can be written.
    const ADDRESS_64: u16 = 1 << 7;
    const WRITABLE: u16 = 0x0071;
    let mut value = vec![0; BYTES];
    value[0] = ID_MSI;
    // CAST: At most 5.
    let control = ADDRESS_64 | (vectors.trailing_zeros() as u16) << 1;
    value[2..4].copy_from_slice(&control.to_le_bytes());
    let mut msi = Capability::new(Kind::Other, value);
    msi.allow(2, &WRITABLE.to_le_bytes());
    // The address is one of 4 bytes. Data follow.
    msi.allow(4, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    msi.allow(12, &[0xff, 0xff]);
    msi
}

fn virtio_bytes(kind: u8, bar: u8, offset: u64, bytes: u64, more: &[u8]) -> Vec<u8> {
    // CAST: The capability has at most 24 bytes.
    let length = (VIRTIO_BYTES + more.len()) as u8;
    // Id and padding are 0.
    let mut value = vec![ID_VENDOR, 0, length, kind, bar, 0, 0, 0];
    // CAST: The low halves; the capability for larger regions has more fields for the others.
    value.extend((offset as u32).to_le_bytes());
    value.extend((bytes as u32).to_le_bytes());
    value.extend(more);
    value
}

/// A part of the register BAR.
fn virtio(kind: u8, part: Part, more: &[u8]) -> Capability {
    let value = virtio_bytes(kind, REGISTER_BAR, part.offset, part.bytes, more);
    Capability::new(Kind::Other, value)
}

/// Access to the BARs by means of configuration space: the driver writes BAR, offset, and
/// length, and then reads or writes the data (VIRTIO 1.3, 4.1.4.9).
fn window() -> Capability {
    let value = virtio_bytes(TYPE_WINDOW, 0, 0, 0, &[0; WINDOW_DATA_BYTES]);
    let mut window = Capability::new(Kind::Window, value);
    window.allow(VIRTIO_BAR, &[0xff]);
    window.allow(VIRTIO_OFFSET, &[0xff; 8 + WINDOW_DATA_BYTES]);
    window
}

/// The shared memory region with id 0 (`struct virtio_pci_cap64`; VIRTIO 1.3, 4.1.4.7).
fn shared_memory(bytes: u64) -> Capability {
    const OFFSET_HIGH: [u8; 4] = [0; 4];
    // CAST: The high half.
    let length_high = ((bytes >> 32) as u32).to_le_bytes();
    let more = [OFFSET_HIGH, length_high].concat();
    let value = virtio_bytes(TYPE_SHARED_MEMORY, SHARED_BAR, 0, bytes, &more);
    Capability::new(Kind::Other, value)
}
