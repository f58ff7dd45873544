// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The calls of `/dev/grabberN`, as in `grabber.h`. The driver and programs compile this file.
//!
//! One program at a time has the card: a second `open` fails with `EBUSY`.
//!
//! | call | does | errors |
//! |---|---|---|
//! | [`IOC_INFO`] | fills in an [`Info`] | |
//! | [`IOC_REGISTER`] | pins the memory of [`Buffers`], which are idle then | `EBUSY` if there are some, `EINVAL` for wrong fields, `EFAULT` for memory that the program cannot write, `ENOMEM` beyond `RLIMIT_MEMLOCK`, `EAGAIN` without room for DMA |
//! | [`IOC_UNREGISTER`] | withdraws all buffers, resets the card, and unpins | |
//! | [`IOC_POST`] | gives an idle buffer to the card, behind those that it has | `EINVAL` if there is no such buffer, `EBUSY` if it is not idle |
//! | `read` | waits for the next frame, and returns a [`Frame`] | `EAGAIN` with `O_NONBLOCK`, `EINVAL` for fewer bytes, `EINTR` if a signal came before a frame, also the one by which io_uring cancels |
//! | `poll` | waits until `read` finds a frame; only for files opened with `O_NONBLOCK` | |
//!
//! Once the card has failed, and until [`IOC_UNREGISTER`], [`IOC_REGISTER`] and [`IOC_POST`] fail with
//! `EIO`; `read` returns the frames that are there, and then fails with `EIO`. All fail with `ENODEV` once
//! the driver is unbound. A `read` into memory that cannot be written (`EFAULT`) loses its frame.
//! Bytes of a buffer behind its frame are undefined. Closing the file does what [`IOC_UNREGISTER`] does.

/// Type of the `ioctl` numbers.
pub const IOC_TYPE: u32 = 0xd8;
/// `_IOR(IOC_TYPE, 0, struct grabber_info)`
pub const IOC_INFO: u32 = ioc(2, 0, Info::SIZE);
/// `_IOW(IOC_TYPE, 1, struct grabber_buffers)`
pub const IOC_REGISTER: u32 = ioc(1, 1, Buffers::SIZE);
/// `_IO(IOC_TYPE, 2)`
pub const IOC_UNREGISTER: u32 = ioc(0, 2, 0);
/// `_IOW(IOC_TYPE, 3, __u32)`
pub const IOC_POST: u32 = ioc(1, 3, 4);

/// As `_IOC` of `include/uapi/asm-generic/ioctl.h`.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    // CAST: Structures of less than 16 KiB.
    direction << 30 | (size as u32) << 16 | IOC_TYPE << 8 | number
}

/// `struct grabber_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Number of bytes of a frame.
    pub frame_bytes: u32,
    /// Number of frames since the start that found no buffer, modulo 2^32.
    pub dropped: u32,
}

impl Info {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 8;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.frame_bytes.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.dropped.to_ne_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            frame_bytes: half(bytes, 0),
            dropped: half(bytes, 4),
        }
    }
}

/// `struct grabber_buffers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// Address of the first buffer.
    pub address: u64,
    /// Number of bytes of each buffer; they are one behind the other.
    pub bytes: u32,
    /// Number of buffers.
    pub count: u32,
}

impl Buffers {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 16;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&self.address.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.bytes.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_ne_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            address: whole(bytes, 0),
            bytes: half(bytes, 8),
            count: half(bytes, 12),
        }
    }
}

/// `struct grabber_frame`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Number of the buffer, which is idle now.
    pub buffer: u32,
    /// Number of bytes of the frame.
    pub bytes: u32,
    /// Number of frames since the start before this one.
    pub sequence: u64,
    /// Number of these that found no buffer.
    pub dropped: u64,
    /// CRC-32C of the frame.
    pub checksum: u32,
}

impl Frame {
    /// Size of the structure in bytes; the last 4 are reserved, and 0.
    pub const SIZE: usize = 32;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.buffer.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.bytes.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.dropped.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.checksum.to_ne_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            buffer: half(bytes, 0),
            bytes: half(bytes, 4),
            sequence: whole(bytes, 8),
            dropped: whole(bytes, 16),
            checksum: half(bytes, 24),
        }
    }
}

fn half<const S: usize>(bytes: &[u8; S], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(number)
}

fn whole<const S: usize>(bytes: &[u8; S], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(number)
}
