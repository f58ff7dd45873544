// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Identifiers, sizes and byte layout of all data that device and driver exchange.
//!
//! All integers are little-endian. Every structure is converted from and to a byte array of its
//! exact size; neither side reinterprets memory that the other side can write. Parsing
//! validates the bytes, so a value of one of these types is valid.
//!
//! # Queues
//!
//! | index | name | buffers |
//! |---|---|---|
//! | 0 | control | requests with a control [`Opcode`] |
//! | 1 | event | device-writable, [`Event::SIZE`] bytes each |
//! | 2.. | I/O | requests with an I/O [`Opcode`] |
//!
//! # Request
//!
//! A request is one descriptor chain (VIRTIO 1.3, 2.7.5): a device-readable
//! [`RequestHeader`], the data, and a device-writable [`RequestStatus`] at the end. Data is
//! device-readable for [`Opcode::Write`] and device-writable for [`Opcode::Read`]. The
//! distribution of the bytes over descriptors has no meaning (VIRTIO 1.3, 2.7.4).
//!
//! # Commands
//!
//! A command is an I/O request that the device executes within its own memory. It carries no
//! data: `offset` and `length` of the header are its range, and `argument` is its parameter. A
//! command of length 0 is valid and has no effect.
//!
//! | opcode | effect | `argument` | result |
//! |---|---|---|---|
//! | [`Opcode::Discard`] | discards the contents; the range reads as 0 afterwards | 0 | `length` |
//! | [`Opcode::WriteZeroes`] | stores 0 | 0 | `length` |
//! | [`Opcode::Copy`] | stores a copy of another range | offset of that range | `length` |
//! | [`Opcode::Fill`] | stores a pattern | the pattern | `length` |
//! | [`Opcode::Compare`] | compares with another range | offset of that range | equal leading bytes |
//! | [`Opcode::Crc32c`] | computes a checksum | checksum so far | checksum |
//!
//! A command that ends with an error has the result 0; a command that stores may have stored
//! any part of its range by then. Commands are not atomic: a command can see a part of what
//! other requests, and stores through the aperture, write to the same bytes meanwhile.
//!
//! A command occupies its queue until it is completed, and a copy between overlapping ranges
//! delays a reset of the device as well. [`DeviceConfig::max_command_bytes`] limits the length
//! of a command.
//!
//! # Aperture
//!
//! The VIRTIO shared memory region [`APERTURE_SHMID`] shows the device memory. The contents of
//! that region are undefined until the device has completed [`Opcode::MapAperture`] after
//! `DRIVER_OK`.

/// PCI vendor of every VIRTIO device (VIRTIO 1.3, 4.1.2).
pub const PCI_VENDOR_ID: u16 = 0x1af4;

/// VIRTIO device type. Linux has no driver for type 21; [`DeviceConfig::MAGIC`] distinguishes
/// a Ringbar device from others of that type.
pub const VIRTIO_DEVICE_ID: u16 = 21;

/// PCI device id of the VIRTIO transport: 0x1040 plus the device type
/// (VIRTIO 1.3, 4.1.2).
pub const PCI_DEVICE_ID: u16 = 0x1040 + VIRTIO_DEVICE_ID;

/// PCI device id of the vfio-user transport, whose function is no part of the range of VIRTIO's
/// device types. It is in the range that the vendor leaves for experiments, and Linux' VIRTIO
/// driver does not probe it.
pub const PCI_DEVICE_ID_VFIO_USER: u16 = 0x10f0;

/// Index of the control queue.
pub const CONTROL_QUEUE: u16 = 0;

/// Index of the event queue.
pub const EVENT_QUEUE: u16 = 1;

/// Index of the first I/O queue.
pub const FIRST_IO_QUEUE: u16 = 2;

/// Id of the shared memory region (VIRTIO 1.3, 2.10) that shows the device
/// memory.
pub const APERTURE_SHMID: u8 = 0;

/// Size in bytes of the pages that the aperture shows. It shows whole pages only, because the
/// rest of an incomplete last page does not belong to the device.
pub const APERTURE_PAGE: u64 = 4096;

/// Number of bytes that an aperture can show of `bytes` bytes of device memory: the whole
/// pages.
pub const fn aperture_of(bytes: u64) -> u64 {
    bytes - bytes % APERTURE_PAGE
}

/// Least value in bytes of [`DeviceConfig::max_command_bytes`] where there are commands: the
/// size of a fill's pattern, so that a driver can split a fill.
pub const MIN_COMMAND_BYTES: u64 = 8;

/// Greatest number of I/O queues of a device.
pub const MAX_IO_QUEUES: u16 = 64;

/// Copies `N` bytes out of `bytes` from `at` on. All callers use constants for which `at + N`
/// is within the array.
const fn field<const N: usize, const S: usize>(bytes: &[u8; S], at: usize) -> [u8; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = bytes[at + i];
        i += 1;
    }
    out
}

/// Device configuration space (VIRTIO 1.3, 2.5).
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | [`Self::MAGIC`] |
/// | 8 | 2 | [`Self::VERSION`] |
/// | 10 | 2 | `io_queues` |
/// | 12 | 2 | `max_segments` |
/// | 14 | 2 | reserved, 0 |
/// | 16 | 8 | `capacity` |
/// | 24 | 8 | `aperture_bytes` |
/// | 32 | 4 | `max_request_bytes` |
/// | 36 | 4 | `operations` |
/// | 40 | 8 | `max_command_bytes` |
/// | 48 | 16 | reserved, 0 |
///
/// # Invariants
///
/// `1 <= io_queues <= MAX_IO_QUEUES`, `max_segments >= 1`, `capacity >= 1` and
/// at most `i64::MAX` (it is a file size in the guest), `aperture_bytes <=
/// capacity` and a multiple of [`APERTURE_PAGE`], `max_request_bytes >= 1`, `operations`
/// contains read and write, and `max_command_bytes` is at least [`MIN_COMMAND_BYTES`] where
/// `operations` contains a command, and 0 where not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    parts: ConfigParts,
}

/// The fields of a [`DeviceConfig`], not yet validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigParts {
    /// Number of I/O queues of the device.
    pub io_queues: u16,
    /// Greatest number of data segments in one request, header and status not counted.
    pub max_segments: u16,
    /// Size of the device memory in bytes.
    pub capacity: u64,
    /// Number of bytes that the aperture shows, from the start of the device memory; a multiple
    /// of [`APERTURE_PAGE`].
    pub aperture_bytes: u64,
    /// Greatest number of data bytes in one request.
    pub max_request_bytes: u32,
    /// Mask with bit `n` set where the device executes the I/O opcode with the value `n`, see
    /// [`Opcode::mask`].
    pub operations: u32,
    /// Greatest length of one command in bytes.
    pub max_command_bytes: u64,
}

/// Reason why a configuration space is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The magic is missing: this is another device of type 21.
    NotRingbar,
    /// The device has this version of the layout, which is not [`DeviceConfig::VERSION`].
    Version(u16),
    /// `io_queues` is 0 or above [`MAX_IO_QUEUES`].
    IoQueues(u16),
    /// `max_segments` is 0.
    MaxSegments,
    /// `capacity` is 0 or above `i64::MAX`.
    Capacity(u64),
    /// `aperture_bytes` is above `capacity`, or no multiple of [`APERTURE_PAGE`].
    Aperture(u64),
    /// `max_request_bytes` is 0.
    MaxRequest,
    /// `operations` lacks read or write.
    Operations(u32),
    /// `max_command_bytes` is below [`MIN_COMMAND_BYTES`] although there are commands, or
    /// it is not 0 although there are none.
    MaxCommand(u64),
}

impl DeviceConfig {
    /// Size of the configuration space in bytes.
    pub const SIZE: usize = 64;

    /// First bytes of the configuration space.
    pub const MAGIC: [u8; 8] = *b"RINGBAR\0";

    /// Version of this layout.
    pub const VERSION: u16 = 2;

    /// Validates the fields of a configuration.
    ///
    /// # Errors
    ///
    /// The first field that violates the invariants of [`DeviceConfig`].
    pub const fn new(parts: ConfigParts) -> Result<Self, ConfigError> {
        const NEEDED: u32 = Opcode::Read.mask() | Opcode::Write.mask();

        if parts.io_queues == 0 || parts.io_queues > MAX_IO_QUEUES {
            return Err(ConfigError::IoQueues(parts.io_queues));
        }
        if parts.max_segments == 0 {
            return Err(ConfigError::MaxSegments);
        }
        if parts.capacity == 0 || parts.capacity > i64::MAX as u64 {
            return Err(ConfigError::Capacity(parts.capacity));
        }
        if parts.aperture_bytes > parts.capacity
            || aperture_of(parts.aperture_bytes) != parts.aperture_bytes
        {
            return Err(ConfigError::Aperture(parts.aperture_bytes));
        }
        if parts.max_request_bytes == 0 {
            return Err(ConfigError::MaxRequest);
        }
        if parts.operations & NEEDED != NEEDED {
            return Err(ConfigError::Operations(parts.operations));
        }
        let fits = if parts.operations & Opcode::COMMANDS != 0 {
            parts.max_command_bytes >= MIN_COMMAND_BYTES
        } else {
            parts.max_command_bytes == 0
        };
        if !fits {
            return Err(ConfigError::MaxCommand(parts.max_command_bytes));
        }
        // INVARIANT: each part was checked above.
        Ok(Self { parts })
    }

    /// The configuration of the same device with another capacity. The aperture shows its whole
    /// pages, but at most `aperture` bytes.
    pub const fn resized(self, capacity: u64, aperture: u64) -> Result<Self, ConfigError> {
        let mut parts = self.parts;
        parts.capacity = capacity;
        let shown = if aperture < capacity {
            aperture
        } else {
            capacity
        };
        parts.aperture_bytes = aperture_of(shown);
        Self::new(parts)
    }

    /// Parses the bytes of a configuration space.
    ///
    /// # Errors
    ///
    /// Another device or version, or the first field that violates the invariants.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Result<Self, ConfigError> {
        if field::<8, { Self::SIZE }>(bytes, 0) != Self::MAGIC {
            return Err(ConfigError::NotRingbar);
        }
        let version = u16::from_le_bytes(field(bytes, 8));
        if version != Self::VERSION {
            return Err(ConfigError::Version(version));
        }
        Self::new(ConfigParts {
            io_queues: u16::from_le_bytes(field(bytes, 10)),
            max_segments: u16::from_le_bytes(field(bytes, 12)),
            capacity: u64::from_le_bytes(field(bytes, 16)),
            aperture_bytes: u64::from_le_bytes(field(bytes, 24)),
            max_request_bytes: u32::from_le_bytes(field(bytes, 32)),
            operations: u32::from_le_bytes(field(bytes, 36)),
            max_command_bytes: u64::from_le_bytes(field(bytes, 40)),
        })
    }

    /// The bytes of the configuration space.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..8].copy_from_slice(&Self::MAGIC);
        out[8..10].copy_from_slice(&Self::VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&self.parts.io_queues.to_le_bytes());
        out[12..14].copy_from_slice(&self.parts.max_segments.to_le_bytes());
        out[16..24].copy_from_slice(&self.parts.capacity.to_le_bytes());
        out[24..32].copy_from_slice(&self.parts.aperture_bytes.to_le_bytes());
        out[32..36].copy_from_slice(&self.parts.max_request_bytes.to_le_bytes());
        out[36..40].copy_from_slice(&self.parts.operations.to_le_bytes());
        out[40..48].copy_from_slice(&self.parts.max_command_bytes.to_le_bytes());
        out
    }

    /// Number of I/O queues of the device.
    pub const fn io_queues(&self) -> u16 {
        self.parts.io_queues
    }

    /// Greatest number of data segments in one request, header and status not counted.
    pub const fn max_segments(&self) -> u16 {
        self.parts.max_segments
    }

    /// Size of the device memory in bytes.
    pub const fn capacity(&self) -> u64 {
        self.parts.capacity
    }

    /// Number of bytes that the aperture shows, from the start of the device memory.
    pub const fn aperture_bytes(&self) -> u64 {
        self.parts.aperture_bytes
    }

    /// Greatest number of data bytes in one request.
    pub const fn max_request_bytes(&self) -> u32 {
        self.parts.max_request_bytes
    }

    /// Greatest length of one command in bytes, 0 where the device executes none.
    pub const fn max_command_bytes(&self) -> u64 {
        self.parts.max_command_bytes
    }

    /// Whether the device executes `opcode`.
    pub const fn supports(&self, opcode: Opcode) -> bool {
        opcode.is_control() || self.parts.operations & opcode.mask() != 0
    }
}

/// Operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Opcode {
    /// Copy device memory to the data segments.
    Read = 1,
    /// Copy the data segments to device memory.
    Write = 2,
    /// Make the data of all earlier requests, on any queue, durable. Carries no data; offset and
    /// length are 0.
    Flush = 3,
    /// Command: discard the contents of the range. The range reads as 0 until something is
    /// stored in it, and the storage may release its space.
    Discard = 4,
    /// Command: store 0 in the range. Its space stays allocated.
    WriteZeroes = 5,
    /// Command: copy the `length` bytes from offset `argument` on to the range. The two ranges
    /// may overlap; the target then gets the contents that the source had before.
    Copy = 6,
    /// Command: store the 8 bytes of `argument`, in little-endian order, repeatedly from the
    /// start of the range. The last repetition is truncated where the length is not a multiple
    /// of 8.
    Fill = 7,
    /// Command: compare the range with the `length` bytes from offset `argument`
    /// on. The result is the number of bytes before the first difference, which
    /// is `length` where there is none; the status is [`StatusCode::Ok`] either
    /// way.
    Compare = 8,
    /// Command: compute the CRC-32C of the range (polynomial 0x1EDC6F41,
    /// reflected, initial value and final XOR 0xFFFFFFFF; RFC 3720, 12.1), in
    /// the lower 32 bits of the result. `argument` is the CRC-32C of the bytes
    /// before the range, 0 if there are none, so that a driver can split a long range; its upper
    /// 32 bits are 0.
    Crc32c = 9,
    /// Control queue: map the device memory into the aperture. Carries no data; the result is
    /// the number of bytes mapped. The device completes it once the mapping is in place. The
    /// driver sends it once after each `DRIVER_OK`.
    MapAperture = 0x8000,
}

impl Opcode {
    /// Bits of all commands in the `operations` mask.
    pub const COMMANDS: u32 = Self::Discard.mask()
        | Self::WriteZeroes.mask()
        | Self::Copy.mask()
        | Self::Fill.mask()
        | Self::Compare.mask()
        | Self::Crc32c.mask();

    /// The opcode of this value, if there is one.
    pub const fn from_raw(raw: u16) -> Option<Self> {
        match raw {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            3 => Some(Self::Flush),
            4 => Some(Self::Discard),
            5 => Some(Self::WriteZeroes),
            6 => Some(Self::Copy),
            7 => Some(Self::Fill),
            8 => Some(Self::Compare),
            9 => Some(Self::Crc32c),
            0x8000 => Some(Self::MapAperture),
            _ => None,
        }
    }

    /// Whether this opcode belongs on the control queue.
    pub const fn is_control(self) -> bool {
        self as u16 & 0x8000 != 0
    }

    /// Whether this is a command, which works within the device memory.
    pub const fn is_command(self) -> bool {
        self.mask() & Self::COMMANDS != 0
    }

    /// Whether this opcode changes the device memory. Only such an opcode may have
    /// [`RequestHeader::FUA`].
    pub const fn writes(self) -> bool {
        match self {
            Self::Write | Self::Discard | Self::WriteZeroes | Self::Copy | Self::Fill => true,
            Self::Read | Self::Flush | Self::Compare | Self::Crc32c | Self::MapAperture => false,
        }
    }

    /// Whether `argument` is the offset of a second range of `length` bytes.
    pub const fn has_second_range(self) -> bool {
        matches!(self, Self::Copy | Self::Compare)
    }

    /// Bit of an I/O opcode in the `operations` mask; 0 for a control opcode.
    pub const fn mask(self) -> u32 {
        if self.is_control() {
            0
        } else {
            1 << self as u16
        }
    }
}

/// Start of every request, device-readable.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 2 | `opcode` |
/// | 2 | 2 | `flags` |
/// | 4 | 4 | reserved, 0 |
/// | 8 | 8 | `offset` |
/// | 16 | 8 | `length` |
/// | 24 | 8 | `argument` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Operation of the request.
    pub opcode: Opcode,
    /// [`Self::FUA`] or 0.
    pub flags: u16,
    /// Start of the range in the device memory, in bytes.
    pub offset: u64,
    /// Length of the range in bytes; the sum of the data segments, except in a command, which
    /// has none.
    pub length: u64,
    /// Parameter of the opcode; 0 for an opcode without one.
    pub argument: u64,
}

/// Reason why a request header is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// No operation has this opcode.
    Opcode(u16),
    /// Flags that are unknown, or not allowed with this opcode.
    Flags(u16),
    /// A reserved field is not 0, or the argument of an opcode that has none.
    Reserved,
    /// An argument that is impossible for the opcode.
    Argument(u64),
}

impl RequestHeader {
    /// Size in bytes.
    pub const SIZE: usize = 32;

    /// With an opcode that changes the device memory ([`Opcode::writes`]): the change is durable
    /// before the device writes the status ("force unit access").
    pub const FUA: u16 = 1 << 0;

    /// The header of a request without data segments and flags.
    pub const fn command(opcode: Opcode, offset: u64, length: u64, argument: u64) -> Self {
        Self {
            opcode,
            flags: 0,
            offset,
            length,
            argument,
        }
    }

    /// Parses a header. It does not check ranges, because only the device knows its capacity.
    ///
    /// # Errors
    ///
    /// The first field that is invalid.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Result<Self, HeaderError> {
        let raw = u16::from_le_bytes(field(bytes, 0));
        let opcode = Opcode::from_raw(raw).ok_or(HeaderError::Opcode(raw))?;
        let flags = u16::from_le_bytes(field(bytes, 2));
        let allowed = if opcode.writes() { Self::FUA } else { 0 };
        if flags & !allowed != 0 {
            return Err(HeaderError::Flags(flags));
        }
        if field::<4, { Self::SIZE }>(bytes, 4) != [0; 4] {
            return Err(HeaderError::Reserved);
        }
        let argument = u64::from_le_bytes(field(bytes, 24));
        match opcode {
            Opcode::Copy | Opcode::Fill | Opcode::Compare => {}
            Opcode::Crc32c if argument > u64::from(u32::MAX) => {
                return Err(HeaderError::Argument(argument));
            }
            Opcode::Crc32c => {}
            _ if argument != 0 => return Err(HeaderError::Reserved),
            _ => {}
        }
        Ok(Self {
            opcode,
            flags,
            offset: u64::from_le_bytes(field(bytes, 8)),
            length: u64::from_le_bytes(field(bytes, 16)),
            argument,
        })
    }

    /// The bytes of the header in guest memory.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..2].copy_from_slice(&(self.opcode as u16).to_le_bytes());
        out[2..4].copy_from_slice(&self.flags.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..32].copy_from_slice(&self.argument.to_le_bytes());
        out
    }
}

/// Result code of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StatusCode {
    /// The request succeeded in full.
    Ok = 0,
    /// The storage behind the device failed.
    IoError = 1,
    /// The device does not execute this opcode, or not on this queue.
    Unsupported = 2,
    /// Flags, lengths or directions of the request are inconsistent.
    Invalid = 3,
    /// Offset or offset plus length lies outside the device memory, or the
    /// second range of a command does.
    OutOfRange = 4,
    /// The storage has no space left.
    NoSpace = 5,
    /// The aperture cannot be mapped (shared memory was not negotiated, or the
    /// virtual machine monitor refused).
    ApertureUnavailable = 6,
}

impl StatusCode {
    /// The code of this value, if there is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Ok),
            1 => Some(Self::IoError),
            2 => Some(Self::Unsupported),
            3 => Some(Self::Invalid),
            4 => Some(Self::OutOfRange),
            5 => Some(Self::NoSpace),
            6 => Some(Self::ApertureUnavailable),
            _ => None,
        }
    }
}

/// Last part of every request, device-writable.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | `code` |
/// | 4 | 4 | reserved, 0 |
/// | 8 | 8 | `result` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestStatus {
    /// Result code.
    pub code: StatusCode,
    /// For read and write the number of bytes transferred, which is less than the length only
    /// where `code` is an error. For other opcodes as described at [`Opcode`].
    pub result: u64,
}

impl RequestStatus {
    /// Size in bytes.
    pub const SIZE: usize = 16;

    /// The bytes of a status that no device has written. The driver stores them before it makes
    /// a request available, so that it detects a used request without a status.
    pub const UNWRITTEN: [u8; Self::SIZE] = [0xff; Self::SIZE];

    /// Parses the status of a used request; `None` where the device wrote no valid code.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        Some(Self {
            code: StatusCode::from_raw(u32::from_le_bytes(field(bytes, 0)))?,
            result: u64::from_le_bytes(field(bytes, 8)),
        })
    }

    /// The bytes that the device writes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..4].copy_from_slice(&(self.code as u32).to_le_bytes());
        out[8..16].copy_from_slice(&self.result.to_le_bytes());
        out
    }
}

/// Reason why the device broke a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum QueueFault {
    /// A descriptor chain loops, is incomplete, or is longer than allowed.
    Chain = 1,
    /// A descriptor points outside guest memory.
    Address = 2,
    /// A chain has no place for the status.
    NoStatus = 3,
    /// The ring itself is inconsistent, for example by an index beyond the ring.
    Ring = 4,
}

impl QueueFault {
    /// The fault of this value, if there is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Chain),
            2 => Some(Self::Address),
            3 => Some(Self::NoStatus),
            4 => Some(Self::Ring),
            _ => None,
        }
    }
}

/// Message of the device to the driver, in a buffer of the event queue.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 2 | kind: 1 queue broken, 2 capacity changed |
/// | 2 | 2 | queue |
/// | 4 | 4 | fault |
/// | 8 | 8 | capacity |
/// | 16 | 16 | reserved, 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device does not process this queue until it is reset.
    QueueBroken {
        /// Index of the queue.
        queue: u16,
        /// Reason.
        fault: QueueFault,
    },
    /// The size of the device memory has changed.
    CapacityChanged {
        /// New size in bytes, within the limits of [`DeviceConfig`].
        capacity: u64,
    },
}

impl Event {
    /// Size in bytes.
    pub const SIZE: usize = 32;

    /// Parses an event; `None` where the bytes are no event of this version.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        match u16::from_le_bytes(field(bytes, 0)) {
            1 => Some(Self::QueueBroken {
                queue: u16::from_le_bytes(field(bytes, 2)),
                fault: QueueFault::from_raw(u32::from_le_bytes(field(bytes, 4)))?,
            }),
            2 => match u64::from_le_bytes(field(bytes, 8)) {
                capacity @ 1..=0x7fff_ffff_ffff_ffff => Some(Self::CapacityChanged { capacity }),
                _ => None,
            },
            _ => None,
        }
    }

    /// The bytes that the device writes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        match self {
            Self::QueueBroken { queue, fault } => {
                out[0..2].copy_from_slice(&1u16.to_le_bytes());
                out[2..4].copy_from_slice(&queue.to_le_bytes());
                out[4..8].copy_from_slice(&(fault as u32).to_le_bytes());
            }
            Self::CapacityChanged { capacity } => {
                out[0..2].copy_from_slice(&2u16.to_le_bytes());
                out[8..16].copy_from_slice(&capacity.to_le_bytes());
            }
        }
        out
    }
}
