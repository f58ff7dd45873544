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
//! | the last | [`Status`] | writes it |
//!
//! A message may be longer than a source. Then it has several requests, one after the other: the
//! card keeps nothing between them, and each has the state that the one before ended with.

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
/// Greatest number of bytes of a source: whole blocks, which a CPU hashes in less than a millisecond.
pub const MAX_BYTES: u32 = 128 << 10;
/// Number of bytes of a block of SHA-256.
pub const BLOCK: usize = 64;
/// Greatest number of buffers of a request.
pub const MAX_BUFFERS: u16 = 256;

/// The first bytes of the configuration space: the name of the card.
pub const MAGIC: [u8; 16] = padded(b"hasher");

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
    /// Greatest number of bytes of a source: a multiple of [`BLOCK`], and at most [`MAX_BYTES`].
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
        let possible =
            (1..=MAX_BYTES).contains(&max_bytes) && max_bytes as usize & (BLOCK - 1) == 0;
        (bytes[..16] == MAGIC && possible).then_some(Self { max_bytes })
    }
}

/// The state of SHA-256 between two blocks (FIPS 180-4, 6.2).
pub type State = [u32; 8];

/// The state before the first block (FIPS 180-4, 5.3.3).
pub const INITIAL: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// The source is whole blocks of a message, and not its end.
    Update = 1,
    /// The source is the end of a message, whose digest is the state in the status.
    Final = 2,
}

impl Opcode {
    /// The opcode with this number.
    pub fn from_raw(raw: u32) -> Option<Self> {
        [Self::Update, Self::Final]
            .into_iter()
            .find(|opcode| *opcode as u32 == raw)
    }
}

/// The first buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The operation.
    pub opcode: Opcode,
    /// Number of bytes of the source: at most [`MAX_BYTES`]; for [`Opcode::Update`] a multiple of
    /// [`BLOCK`].
    pub source: u64,
    /// Number of bytes of the message in earlier requests, a multiple of [`BLOCK`].
    pub before: u64,
    /// The state after these, [`INITIAL`] for none.
    pub state: State,
}

impl Header {
    /// Size in bytes.
    pub const SIZE: usize = 56;

    /// The bytes of the buffer. Bytes 4 to 7 are reserved, and 0.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&(self.opcode as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.source.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.before.to_le_bytes());
        bytes[24..].copy_from_slice(&words(&self.state, u32::to_le_bytes));
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` for an unknown opcode.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        Some(Self {
            opcode: Opcode::from_raw(u32::from_le_bytes(array(bytes, 0)))?,
            source: u64::from_le_bytes(array(bytes, 8)),
            before: u64::from_le_bytes(array(bytes, 16)),
            state: state(bytes, 24),
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
    /// The state after the source, 0 after an error.
    pub state: State,
}

impl Status {
    /// Size in bytes.
    pub const SIZE: usize = 40;

    /// The bytes of the buffer. Bytes 4 to 7 are reserved, and 0.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&(self.code as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&words(&self.state, u32::to_le_bytes));
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` for a code that no card writes.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let raw = u32::from_le_bytes(array(bytes, 0));
        let code = [Code::Ok, Code::Unsupported, Code::Invalid, Code::Failed]
            .into_iter()
            .find(|code| *code as u32 == raw)?;
        let state = state(bytes, 8);
        Some(Self { code, state })
    }
}

/// The digest of a message, from the state behind it (FIPS 180-4, 6.2.2).
pub fn digest(state: &State) -> [u8; 32] {
    words(state, u32::to_be_bytes)
}

/// The bytes of a state.
fn words(state: &State, bytes_of: fn(u32) -> [u8; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (at, &word) in state.iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&bytes_of(word));
    }
    bytes
}

/// The state whose bytes begin at `at`.
fn state<const S: usize>(bytes: &[u8; S], at: usize) -> State {
    core::array::from_fn(|word| u32::from_le_bytes(array(bytes, at + 4 * word)))
}

/// `N` bytes from `at` on; the constants of the callers keep them within the array.
fn array<const N: usize, const S: usize>(bytes: &[u8; S], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
