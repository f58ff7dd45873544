// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as the client maps it for DMA (vfio-user, `VFIO_USER_DMA_MAP` and
//! `VFIO_USER_DMA_UNMAP`).
//!
//! A range of the device's address space (I/O virtual addresses, or guest physical addresses
//! where there is no IOMMU) shows a part of a file of the client. [`DmaTable`] holds the ranges
//! and belongs to the one thread that hears of changes. [`DmaMemory`] is the table as it was at
//! one moment, and what the workers read and write through; the table's owner hands them a new
//! one after each change.
//!
//! ```text
//!   map ──> range of the table ──> unmap
//!             │ memory()
//!             v
//!           DmaMemory ──> dropped by the last worker
//! ```
//!
//! The memory of a range stays mapped as long as one of both refers to it, so a worker never
//! touches memory that is gone. It may touch memory that is unmapped in the table: the owner
//! of the table replies to an unmap only when every worker uses a later [`DmaMemory`].
//!
//! # What the client is trusted with
//!
//! Its numbers are checked before they are used. Its file is checked when it is mapped. A
//! client that shortens a file later lets the next access to it end this process by SIGBUS, as
//! it would with any other device process; QEMU seals a `memory-backend-memfd` against it.

mod file;
mod files;
mod memory;
mod ranges;
mod table;

use rustix::io::Errno;
use vm_memory::Permissions;

pub use memory::DmaMemory;
pub use table::DmaTable;

/// Granularity of addresses, sizes and offsets in bytes: the default of the capability `pgsizes`
/// of the vfio-user protocol.
pub const PAGE_SIZE: u64 = 4096;

/// Maximal number of ranges in a table. More than the default of the capability `max_dma_maps`
/// of the vfio-user protocol, which is 65535.
pub const MAX_RANGES: usize = 65536;

/// Maximal number of files that ranges show. A process has 65530 mappings, and this one must not
/// run out of them.
pub const MAX_FILES: usize = 1024;

/// A range that the client maps (vfio-user, `VFIO_USER_DMA_MAP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// First address of the range in the address space of the device.
    pub address: u64,
    /// Size of the range in bytes.
    pub size: u64,
    /// Offset of the range in the client's file in bytes.
    pub offset: u64,
    /// Accesses that the client allows.
    pub access: Permissions,
}

/// Ranges that the client takes back (vfio-user, `VFIO_USER_DMA_UNMAP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaUnmap {
    /// All addresses from `address` on.
    Range {
        /// First address.
        address: u64,
        /// Number of bytes.
        size: u64,
    },
    /// All addresses (`VFIO_DMA_UNMAP_FLAG_ALL`).
    All,
}

/// Reason why a range is not mapped or unmapped. The table is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// The size is 0.
    #[error("the range at {address:#x} is empty")]
    Empty {
        /// First address of the range.
        address: u64,
    },
    /// Address, size or offset is not a multiple of [`PAGE_SIZE`].
    #[error(
        "the range at {address:#x} of {size:#x} bytes from offset {offset:#x} is not aligned to {PAGE_SIZE} bytes"
    )]
    Misaligned {
        /// First address of the range.
        address: u64,
        /// Size of the range in bytes.
        size: u64,
        /// Offset in the file in bytes; 0 for an unmap.
        offset: u64,
    },
    /// The last address exceeds 64 bits.
    #[error("the range at {address:#x} of {size:#x} bytes passes the end of the address space")]
    Overflow {
        /// First address of the range.
        address: u64,
        /// Size of the range in bytes.
        size: u64,
    },
    /// A part of the range is mapped already.
    #[error("the range at {address:#x} of {size:#x} bytes overlaps one that is mapped")]
    Overlap {
        /// First address of the range.
        address: u64,
        /// Size of the range in bytes.
        size: u64,
    },
    /// The table would have more than [`MAX_RANGES`] ranges.
    #[error("more than {MAX_RANGES} ranges")]
    TooManyRanges,
    /// The file is not a regular file (memfd, hugetlbfs, tmpfs, disk).
    #[error("the client's file is not a regular file")]
    NotRegular,
    /// The range ends behind the end of the file.
    #[error("bytes {offset:#x}+{size:#x} are not within the client's file of {length:#x} bytes")]
    BeyondFile {
        /// Offset in the file in bytes.
        offset: u64,
        /// Size of the range in bytes.
        size: u64,
        /// Length of the file in bytes.
        length: u64,
    },
    /// The range is to be written by the device, and the file cannot be mapped for writing.
    #[error("the client's file is read-only and the range is not")]
    ReadOnly,
    /// More than [`MAX_FILES`] files would be mapped.
    #[error("more than {MAX_FILES} files")]
    TooManyFiles,
    /// The file has to be mapped anew, and ranges that show it would lose memory or the right to
    /// write by it: the client has shortened or sealed it since, or sends a descriptor for reading
    /// only and the file has grown since.
    #[error("the client's file or descriptor no longer allows what ranges of it need")]
    FileChanged,
    /// The file cannot be examined or mapped.
    #[error("cannot map the client's file")]
    File(#[source] Errno),
}

impl DmaError {
    /// The error number of the reply to the client.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Empty { .. }
            | Self::Misaligned { .. }
            | Self::Overflow { .. }
            | Self::NotRegular
            | Self::BeyondFile { .. }
            | Self::FileChanged => Errno::INVAL,
            // As the protocol demands.
            Self::Overlap { .. } => Errno::EXIST,
            // As VFIO_IOMMU_MAP_DMA of Linux.
            Self::TooManyRanges | Self::TooManyFiles => Errno::NOSPC,
            Self::ReadOnly => Errno::ACCESS,
            Self::File(errno) => *errno,
        }
    }
}
