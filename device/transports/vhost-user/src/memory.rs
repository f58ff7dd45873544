// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as requests may use it.

use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

use ringbar_model::Storage;
use rustix::fs::fstat;
use tracing::debug;
use vm_memory::{
    GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryLoadGuard,
    GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::ring::Memory;

/// Which file a mapping shows: device and inode number.
type FileId = (u64, u64);

/// The memory table of the virtual machine monitor without the device's own
/// aperture.
///
/// Once the aperture is mapped, QEMU lists it in the memory table like any
/// other memory. A request with a segment in it would copy the device memory
/// onto itself behind two addresses; left out of the table, the segment is
/// simply not guest memory.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    table: Memory,
    own_file: Option<FileId>,
}

impl RequestMemory {
    /// Empty, for a device with this storage.
    pub(crate) fn new(storage: &dyn Storage) -> Self {
        Self {
            table: GuestMemoryAtomic::new(GuestMemoryMmap::new()),
            own_file: storage.mappable().and_then(|own| file_id(own.file)),
        }
    }

    /// Takes over a new memory table.
    pub(crate) fn update(&self, table: &Memory) {
        let mut regions = Vec::new();
        for region in table.memory().iter() {
            if self.is_own(region) {
                debug!(
                    address = format_args!("{:#x}", region.start_addr().0),
                    bytes = region.len(),
                    "memory table lists the aperture: left out"
                );
                continue;
            }
            debug!(
                address = format_args!("{:#x}", region.start_addr().0),
                bytes = region.len(),
                "guest memory"
            );
            regions.extend(
                GuestRegionMmap::with_arc(region.get_mmap(), region.start_addr()).map(Arc::new),
            );
        }
        debug!(regions = regions.len(), "new memory table");
        // Fails for an empty list only: the order is that of a valid table.
        let memory = GuestMemoryMmap::from_arc_regions(regions).unwrap_or_default();
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(memory);
    }

    /// The table as it is now; it stays mapped as long as the guard lives.
    pub(crate) fn get(&self) -> GuestMemoryLoadGuard<GuestMemoryMmap> {
        self.table.memory()
    }

    fn is_own(&self, region: &GuestRegionMmap) -> bool {
        self.own_file.is_some()
            && region
                .file_offset()
                .and_then(|offset| file_id(offset.file()))
                == self.own_file
    }
}

fn file_id(file: impl AsFd) -> Option<FileId> {
    fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino))
}
