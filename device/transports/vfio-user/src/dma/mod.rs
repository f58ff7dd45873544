// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as the client maps it for DMA.

use vm_memory::Permissions;

/// One range of I/O virtual addresses that the client offers for DMA
/// (`VFIO_USER_DMA_MAP` of the vfio-user specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// First I/O virtual address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Offset in bytes of the range in its file; 0 without a file.
    pub offset: u64,
    /// Accesses that the device may make.
    pub access: Permissions,
}

/// Ranges that the client takes back (`VFIO_USER_DMA_UNMAP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaUnmap {
    /// One range.
    Range {
        /// First I/O virtual address.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Every range.
    All,
}
