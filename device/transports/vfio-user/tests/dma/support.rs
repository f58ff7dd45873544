// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Files of a client, and short forms of its messages.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use ringbar_vfio_user::dma::{DmaError, DmaMap, DmaTable, DmaUnmap};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::Permissions;

pub(crate) const PAGE: u64 = ringbar_vfio_user::dma::PAGE_SIZE;

/// A memfd of `pages` pages, which contain 0. The name must be unique in this program.
pub(crate) fn memfd(name: &str, pages: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags).unwrap());
    file.set_len(pages * PAGE).unwrap();
    file
}

/// Another descriptor of the same file that is open for reading only.
pub(crate) fn read_only(file: &File) -> File {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

/// Number of mappings in this process of the memfd `name`, and whether all are writable.
pub(crate) fn mappings(name: &str) -> (usize, bool) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = format!("/memfd:{name} (deleted)");
    let lines: Vec<_> = maps.lines().filter(|line| line.ends_with(&path)).collect();
    (
        lines.len(),
        lines.iter().all(|line| line.contains(" rw-s ")),
    )
}

/// A copy of the descriptor, as a message carries it.
pub(crate) fn send(file: &File) -> Option<OwnedFd> {
    Some(file.try_clone().unwrap().into())
}

/// Maps `pages` pages at page `address` from page `offset` of the file.
pub(crate) fn map(
    table: &mut DmaTable,
    (address, pages, offset): (u64, u64, u64),
    access: Permissions,
    file: Option<&File>,
) -> Result<(), DmaError> {
    let map = DmaMap {
        address: address.wrapping_mul(PAGE),
        size: pages.wrapping_mul(PAGE),
        offset: offset * PAGE,
        access,
    };
    table.map(map, file.and_then(send), |_| false)
}

/// Unmaps `pages` pages at page `address`.
pub(crate) fn unmap(table: &mut DmaTable, address: u64, pages: u64) -> Result<(), DmaError> {
    table.unmap(DmaUnmap::Range {
        address: address.wrapping_mul(PAGE),
        size: pages.wrapping_mul(PAGE),
    })
}
