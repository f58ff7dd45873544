// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The calls of `/dev/mycardN`, as in `mycard.h`. The driver and programs compile this file.
//!
//! | call | does | errors |
//! |---|---|---|
//! | [`IOC_INFO`] | fills in an [`Info`] | `ENODEV` once the driver is unbound |
//! | [`IOC_RUN`] | executes a [`Run`], and fills in its result | `EINVAL` for wrong fields, `EFAULT` for memory that the program has not, `EAGAIN` without room for DMA, `EIO` if the card fails, `ENODEV` once the driver is unbound |

/// Type of the `ioctl` numbers.
pub const IOC_TYPE: u32 = 0xd8;
/// `_IOR(IOC_TYPE, 0, struct mycard_info)`
pub const IOC_INFO: u32 = ioc(2, 0, Info::SIZE);
/// `_IOWR(IOC_TYPE, 1, struct mycard_run)`
pub const IOC_RUN: u32 = ioc(3, 1, Run::SIZE);

/// As `_IOC` of `include/uapi/asm-generic/ioctl.h`.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    // CAST: Structures of less than 16 KiB.
    direction << 30 | (size as u32) << 16 | IOC_TYPE << 8 | number
}

/// `struct mycard_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Greatest length of a run in bytes.
    pub max_bytes: u32,
}

impl Info {
    /// Size of the structure in bytes; the last 4 are reserved, and 0.
    pub const SIZE: usize = 8;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        u64::from(self.max_bytes).to_le_bytes()
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            // CAST: The upper half is reserved.
            max_bytes: u64::from_le_bytes(*bytes) as u32,
        }
    }
}

/// `struct mycard_run`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// 1 for CRC-32C, 2 for XOR.
    pub opcode: u32,
    /// 0.
    pub reserved: u32,
    /// Address of the source.
    pub source: u64,
    /// Address of the destination, which is as long as the source; 0 for CRC-32C.
    pub destination: u64,
    /// Number of bytes.
    pub length: u64,
    /// The key of XOR, 0 for CRC-32C.
    pub key: u64,
    /// The sum, or the number of bytes.
    pub result: u64,
}

impl Run {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 48;
    /// Offset of the result in the structure, in bytes.
    pub const RESULT_AT: usize = 40;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.opcode.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.reserved.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.source.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.destination.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.length.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.key.to_ne_bytes());
        bytes[40..48].copy_from_slice(&self.result.to_ne_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let half = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(number)
        };
        let whole = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(number)
        };
        Self {
            opcode: half(0),
            reserved: half(4),
            source: whole(8),
            destination: whole(16),
            length: whole(24),
            key: whole(32),
            result: whole(40),
        }
    }
}
