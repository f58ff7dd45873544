// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bytes that card and driver exchange. Both compile this file, so their layouts cannot differ.
//! All numbers are little-endian.
//!
//! A request is a descriptor chain of queue 0:
//!
//! | buffers | contents | the card |
//! |---|---|---|
//! | the first | [`Header`] | reads it |
//! | none or more | source, [`Header::source`] bytes | reads it |
//! | none or more | destination, [`Header::destination`] bytes | writes it |
//! | the last | [`Status`] | writes it |

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
/// Greatest number of bytes of a source.
pub const MAX_BYTES: u32 = 256 << 10;
/// Greatest number of buffers of a request.
pub const MAX_BUFFERS: u16 = 256;

/// The first bytes of the configuration space: the name of the card.
pub const MAGIC: [u8; 16] = padded(b"mycard");

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
    /// Greatest number of bytes of a source, at least 1 and at most [`MAX_BYTES`].
    pub max_bytes: u32,
}

impl Config {
    /// Size in bytes: [`MAGIC`], the field, and 4 reserved bytes.
    pub const SIZE: usize = 24;

    /// The bytes of the configuration space.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16..20].copy_from_slice(&self.max_bytes.to_le_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` for another kind of device, or an impossible value.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let max_bytes = u32::from_le_bytes(array(bytes, 16));
        (bytes[..16] == MAGIC && (1..=MAX_BYTES).contains(&max_bytes)).then_some(Self { max_bytes })
    }
}

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// The result is the CRC-32C of the source. There is no destination.
    Crc32c = 1,
    /// Writes the source to a destination of the same length, each 8 bytes XORed with the key. The
    /// result is the number of bytes.
    Xor = 2,
}

impl Opcode {
    /// The opcode with this number.
    pub fn from_raw(raw: u32) -> Option<Self> {
        [Self::Crc32c, Self::Xor]
            .into_iter()
            .find(|opcode| *opcode as u32 == raw)
    }
}

/// The first buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The operation.
    pub opcode: Opcode,
    /// The key of [`Opcode::Xor`], whose first byte is the least significant.
    pub key: u64,
    /// Number of bytes of the source.
    pub source: u64,
    /// Number of bytes of the destination.
    pub destination: u64,
}

impl Header {
    /// Size in bytes.
    pub const SIZE: usize = 32;

    /// The bytes of the buffer. Bytes 4 to 7 are reserved, and 0.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&(self.opcode as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.key.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.source.to_le_bytes());
        bytes[24..].copy_from_slice(&self.destination.to_le_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` for an unknown opcode.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        Some(Self {
            opcode: Opcode::from_raw(u32::from_le_bytes(array(bytes, 0)))?,
            key: u64::from_le_bytes(array(bytes, 8)),
            source: u64::from_le_bytes(array(bytes, 16)),
            destination: u64::from_le_bytes(array(bytes, 24)),
        })
    }
}

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It was executed.
    Ok = 0,
    /// The card has no such operation.
    Unsupported = 1,
    /// Lengths or addresses are wrong.
    Invalid = 2,
    /// The card has failed.
    Failed = 3,
}

/// The last buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How the request has ended.
    pub code: Code,
    /// The result, 0 after an error.
    pub result: u64,
}

impl Status {
    /// Size in bytes.
    pub const SIZE: usize = 16;
    /// Contents of the buffer before the card has written it, which [`Self::parse`] refuses.
    pub const UNWRITTEN: [u8; Self::SIZE] = [0xff; Self::SIZE];

    /// The bytes of the buffer. Bytes 4 to 7 are reserved, and 0.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&(self.code as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&self.result.to_le_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` for a code that no card writes.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let raw = u32::from_le_bytes(array(bytes, 0));
        let code = [Code::Ok, Code::Unsupported, Code::Invalid, Code::Failed]
            .into_iter()
            .find(|code| *code as u32 == raw)?;
        let result = u64::from_le_bytes(array(bytes, 8));
        Some(Self { code, result })
    }
}

/// `N` bytes from `at` on; the constants of the callers keep them within the array.
fn array<const N: usize, const S: usize>(bytes: &[u8; S], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
