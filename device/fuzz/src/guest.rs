// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory for devices under test, and a copy of it that models change byte by byte.
//!
//! The memory is that of vfio-user, which has permissions. Its regions touch, have a hole between
//! them, differ in what the device may do, and reach the end of the address space.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use arbitrary::Arbitrary;
use ringbar_vfio_user::dma::{DmaMap, DmaMemory, DmaTable};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, Permissions};

/// A range of guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    /// Guest address.
    pub(crate) start: u64,
    /// Number of bytes.
    pub(crate) len: u64,
    /// What the device may do.
    pub(crate) access: Permissions,
}

const fn region(start: u64, len: u64, access: Permissions) -> Region {
    Region { start, len, access }
}

/// All of guest memory.
pub(crate) const REGIONS: [Region; 6] = [
    region(0, 0x2000, Permissions::ReadWrite),
    region(0x2000, 0x1000, Permissions::ReadWrite),
    region(0x3000, 0x1000, Permissions::Read),
    region(0x8000, 0x1000, Permissions::ReadWrite),
    region(0x9000, 0x1000, Permissions::Write),
    region(0u64.wrapping_sub(0x1000), 0x1000, Permissions::ReadWrite),
];

/// Number of bytes of all regions.
const BYTES: usize = {
    let (mut bytes, mut i) = (0, 0);
    while i < REGIONS.len() {
        bytes += REGIONS[i].len as usize;
        i += 1;
    }
    bytes
};

/// An address, mostly one that means something.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Place {
    /// In a region.
    Region(u8, u16),
    /// Close to the end of a region, in it or behind.
    End(u8, i8),
    /// At a multiple of 256 bytes, which other places often have in common.
    Slot(u8),
    Any(u64),
}

impl Place {
    pub(crate) fn address(self) -> u64 {
        let region = |number: u8| REGIONS[usize::from(number) % REGIONS.len()];
        match self {
            Self::Region(number, offset) => {
                let region = region(number);
                region.start + u64::from(offset) % region.len
            }
            Self::End(number, offset) => {
                let region = region(number);
                let end = region.start.wrapping_add(region.len);
                end.wrapping_add_signed(offset.into())
            }
            Self::Slot(number) => u64::from(number) << 8,
            Self::Any(address) => address,
        }
    }
}

/// Index of the byte at an address among those of all regions, how many there are from it to the
/// end of its region, and what the device may do there.
fn locate(address: u64) -> Option<(usize, u64, Permissions)> {
    let mut before = 0;
    for region in REGIONS {
        let offset = address.wrapping_sub(region.start);
        if offset < region.len {
            let index = before + offset as usize;
            return Some((index, region.len - offset, region.access));
        }
        before += region.len as usize;
    }
    None
}

/// Guest memory.
pub(crate) struct Guest {
    pub(crate) memory: DmaMemory,
    /// The same bytes, as the driver sees them: one region after the other.
    bytes: GuestMemoryMmap,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

impl Guest {
    /// Zeros.
    pub(crate) fn new() -> Self {
        let file = File::from(memfd_create("ringbar-fuzz-guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(BYTES as u64).unwrap();
        let mut table = DmaTable::new();
        let mut offset = 0;
        for region in REGIONS {
            let map = DmaMap {
                address: region.start,
                size: region.len,
                offset,
                access: region.access,
            };
            let file = file.try_clone().unwrap();
            table.map(map, Some(file.into()), |_| false).unwrap();
            offset += region.len;
        }
        let whole = FileOffset::from_arc(Arc::new(file), 0);
        let range = (GuestAddress(0), BYTES, Some(whole));
        Self {
            memory: table.memory().unwrap(),
            bytes: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(),
        }
    }

    /// Zeros again.
    pub(crate) fn clear(&self) {
        self.bytes
            .write_slice(&[0; BYTES], GuestAddress(0))
            .unwrap();
    }

    /// Stores what lies within guest memory, as the driver may anywhere.
    pub(crate) fn put(&self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = match locate(address) {
                None => 1,
                Some((at, rest, _)) => {
                    let count = bytes.len().min(rest as usize);
                    let target = GuestAddress(at as u64);
                    self.bytes.write_slice(&bytes[..count], target).unwrap();
                    count
                }
            };
            bytes = &bytes[count..];
            address = address.wrapping_add(count as u64);
        }
    }

    /// A copy of all bytes.
    pub(crate) fn image(&self) -> Image {
        let mut bytes = vec![0; BYTES];
        self.bytes.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        Image(bytes)
    }
}

/// A copy of guest memory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Image(Vec<u8>);

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Image")
    }
}

impl Image {
    /// The byte at an address, if the device may access it so. Addresses beyond the address space
    /// are none.
    pub(crate) fn byte(&mut self, address: u128, access: Permissions) -> Option<&mut u8> {
        let (at, _, allowed) = locate(u64::try_from(address).ok()?)?;
        allowed.allow(access).then(|| &mut self.0[at])
    }

    /// `N` bytes that the device may read.
    pub(crate) fn array<const N: usize>(&mut self, address: u128) -> Option<[u8; N]> {
        let mut array = [0; N];
        for (n, byte) in (0..).zip(&mut array) {
            *byte = *self.byte(address + n, Permissions::Read)?;
        }
        Some(array)
    }

    /// Address of the first byte in which two images differ.
    pub(crate) fn difference(&self, other: &Self) -> Option<u64> {
        if self == other {
            return None;
        }
        let index = (0..BYTES).find(|at| self.0[*at] != other.0[*at])?;
        let mut before = 0;
        REGIONS.iter().find_map(|region| {
            let at = index - before;
            before += region.len as usize;
            (index < before).then(|| region.start + at as u64)
        })
    }
}

/// A buffer of a chain: address, length, and whether the device writes it.
pub(crate) type RawBuffer = (u64, u32, bool);

/// Number of bytes in the buffers of one direction.
pub(crate) fn total(buffers: &[RawBuffer], writable: bool) -> u64 {
    let own = buffers.iter().filter(|buffer| buffer.2 == writable);
    own.map(|buffer| u64::from(buffer.1)).sum()
}

/// Address of byte `position` of the buffers of one direction.
pub(crate) fn byte_address(buffers: &[RawBuffer], writable: bool, mut position: u64) -> u128 {
    for (address, length, direction) in buffers {
        if *direction != writable {
            continue;
        }
        if position < u64::from(*length) {
            return u128::from(*address) + u128::from(position);
        }
        position -= u64::from(*length);
    }
    unreachable!("a position behind the buffers")
}

/// A descriptor, before it is in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawDescriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// Flags of a descriptor (VIRTIO 1.3, 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

impl RawDescriptor {
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: [u8; 16]) -> Self {
        let number = |range: std::ops::Range<usize>| {
            let parts = bytes[range].iter().rev();
            parts.fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        Self {
            address: number(0..8),
            length: number(8..12) as u32,
            flags: number(12..14) as u16,
            next: number(14..16) as u16,
        }
    }
}
