// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The calls of `/dev/hasherN`, as in `hasher.h`. The driver and programs compile this file.
//!
//! | call | does | errors |
//! |---|---|---|
//! | [`IOC_INFO`] | fills in an [`Info`] | `ENODEV` once the driver is unbound |
//! | [`IOC_SHA256`] | fills in the digest of a [`Sha256`] | `EINVAL` for a message that is too long, `EFAULT` for memory that the program has not, `EAGAIN` without room for DMA, `EIO` if the card fails, `ENODEV` once the driver is unbound |

/// Type of the `ioctl` numbers.
pub const IOC_TYPE: u32 = 0xd8;
/// `_IOR(IOC_TYPE, 0, struct hasher_info)`
pub const IOC_INFO: u32 = ioc(2, 0, Info::SIZE);
/// `_IOWR(IOC_TYPE, 1, struct hasher_sha256)`
pub const IOC_SHA256: u32 = ioc(3, 1, Sha256::SIZE);

/// As `_IOC` of `include/uapi/asm-generic/ioctl.h`.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    // CAST: Structures of less than 16 KiB.
    direction << 30 | (size as u32) << 16 | IOC_TYPE << 8 | number
}

/// `struct hasher_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Greatest length of a message in bytes.
    pub max_bytes: u64,
}

impl Info {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 8;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        self.max_bytes.to_ne_bytes()
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            max_bytes: u64::from_ne_bytes(*bytes),
        }
    }
}

/// `struct hasher_sha256`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sha256 {
    /// Address of the message.
    pub address: u64,
    /// Number of bytes.
    pub length: u64,
    /// The digest.
    pub digest: [u8; 32],
}

impl Sha256 {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 48;
    /// Offset of the digest in the structure, in bytes.
    pub const DIGEST_AT: usize = 16;

    /// The bytes of the structure in C's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&self.address.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_ne_bytes());
        bytes[16..48].copy_from_slice(&self.digest);
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let whole = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(number)
        };
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[16..48]);
        Self {
            address: whole(0),
            length: whole(8),
            digest,
        }
    }
}
