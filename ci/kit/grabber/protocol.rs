// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bytes that card and driver exchange. Both compile this file, so their layouts cannot differ.
//! All numbers are little-endian.
//!
//! The card makes frames at a fixed rate, from the first buffer after a start on. A buffer is a
//! descriptor chain of queue 0:
//!
//! | buffers | contents | the card |
//! |---|---|---|
//! | one or more | a frame, [`Config::frame_bytes`] bytes or more | writes it |
//! | the last | [`Metadata`] | writes it |
//!
//! Each frame goes to the oldest buffer that the card has. Without a buffer the frame is dropped.

/// Device type of the VIRTIO function over vhost-user, which QEMU must know and Linux must have no
/// driver for. The PCI device id is 0x1040 more (VIRTIO 1.3, 4.1.2.1). Different cards may share a
/// type: [`MAGIC`] distinguishes them.
pub const VIRTIO_DEVICE_ID: u16 = 22;
/// PCI vendor id of VIRTIO devices.
pub const PCI_VENDOR_ID: u16 = 0x1af4;
/// PCI device id over vhost-user.
pub const PCI_DEVICE_ID: u16 = 0x1040 + VIRTIO_DEVICE_ID;
/// PCI device id over vfio-user, of the range for experiments.
pub const PCI_DEVICE_ID_VFIO_USER: u16 = 0x10f1;

/// Number of queues.
pub const QUEUES: u16 = 1;
/// Greatest number of bytes of a frame.
pub const MAX_FRAME_BYTES: u32 = 512 << 10;
/// Greatest number of buffers of a chain.
pub const MAX_BUFFERS: u16 = 256;

/// The first bytes of the configuration space: the name of the card.
pub const MAGIC: [u8; 16] = padded(b"grabber");

const fn padded(name: &[u8]) -> [u8; 16] {
    let mut magic = [0; 16];
    let mut at = 0;
    while at < name.len() {
        magic[at] = name[at];
        at += 1;
    }
    magic
}

/// The configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of bytes of a frame, at least 1 and at most [`MAX_FRAME_BYTES`].
    pub frame_bytes: u32,
    /// Number of frames since the start that found no buffer, modulo 2^32. It changes at any time.
    pub dropped: u32,
}

impl Config {
    /// Size in bytes: [`MAGIC`], and the fields.
    pub const SIZE: usize = 24;

    /// The bytes of the configuration space.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16..20].copy_from_slice(&self.frame_bytes.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dropped.to_le_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` for another kind of device, or an impossible value.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let frame_bytes = u32::from_le_bytes(array(bytes, 16));
        let dropped = u32::from_le_bytes(array(bytes, 20));
        (bytes[..16] == MAGIC && (1..=MAX_FRAME_BYTES).contains(&frame_bytes)).then_some(Self {
            frame_bytes,
            dropped,
        })
    }
}

/// The last buffer of a chain: which frame the others contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Number of frames since the start before this one, dropped ones included.
    pub sequence: u64,
    /// Number of frames since the start that were dropped before this one.
    pub dropped: u64,
    /// CRC-32C of the frame.
    pub checksum: u32,
}

impl Metadata {
    /// Size in bytes.
    pub const SIZE: usize = 24;

    /// The bytes of the buffer. The last 4 are reserved, and 0.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dropped.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            sequence: u64::from_le_bytes(array(bytes, 0)),
            dropped: u64::from_le_bytes(array(bytes, 8)),
            checksum: u32::from_le_bytes(array(bytes, 16)),
        }
    }
}

/// Byte `at` of frame `sequence`: no two frames of a row and no two pages of a frame are the same.
pub fn pattern(sequence: u64, at: usize) -> u8 {
    let at = at as u64;
    // CAST: The lowest byte of the sum.
    (sequence
        .wrapping_mul(31)
        .wrapping_add(at)
        .wrapping_add(at >> 8)
        .wrapping_add(at >> 16)) as u8
}

/// `N` bytes from `at` on; the constants of the callers keep them within the array.
fn array<const N: usize, const S: usize>(bytes: &[u8; S], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
