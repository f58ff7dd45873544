// SPDX-License-Identifier: GPL-2.0

//! What `mmap` shows, by the selector in the offset. See [`uapi`].

use crate::{
    abstractions::vma::{
        Caching,
        IoMemory,
        NewMap,
        SharedPage, //
    },
    device::Device,
    hardware::Hardware,
    uapi, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

/// Pages of the file that one selector has.
const SELECTOR_PAGES: usize = 1 << (uapi::MAP_SHIFT as usize - PAGE_SHIFT);

/// Pages from one used ring to the next.
const USED_RING_PAGES: usize = (uapi::USED_RING_STRIDE >> PAGE_SHIFT) as usize;

/// The selector of a page of the file, and the page within what it selects.
fn split(page: usize) -> (u64, usize) {
    ((page / SELECTOR_PAGES) as u64, page % SELECTOR_PAGES)
}

/// Device memory that can be mapped now: it may have become smaller than what is
/// behind the aperture, or not be there.
fn memory(device: &Device, hardware: &Hardware) -> Option<IoMemory> {
    if !device.aperture_ready() {
        return None;
    }
    // CAST: A capacity is never negative.
    let capacity = device.capacity() as u64;
    hardware.aperture().map(|aperture| aperture.first(capacity))
}

/// Takes away what maps show beyond the end of the device memory. Sleeps.
pub(crate) fn unmap_beyond_end(device: &Device) {
    let pages = match device.hardware() {
        Ok(hardware) => memory(device, &hardware).map_or(0, |memory| memory.pages()),
        // Everything is taken away by who has closed the gate.
        Err(_) => return,
    };
    for selector in [
        uapi::MAP_MEMORY,
        uapi::MAP_MEMORY_UNCACHED,
        uapi::MAP_MEMORY_CACHED,
    ] {
        // CAST: A small constant.
        let start = selector as usize * SELECTOR_PAGES;
        device
            .maps()
            .unmap(start + pages.min(SELECTOR_PAGES)..start + SELECTOR_PAGES);
    }
}

/// Makes the map. Sleeps. `ENODEV` after unbind, and for device memory that the
/// device could not put behind its aperture; `EINVAL` where there is nothing.
pub(super) fn map(device: &Device, map: NewMap<'_>) -> Result {
    let hardware = device.hardware()?;
    let (selector, page) = split(map.first_page());
    let start = map.first_page() - page;
    let map_memory = |map: NewMap<'_>, caching| {
        memory(device, &hardware)
            .ok_or(ENODEV)?
            .map(&map.relative_to(start)?, caching)
    };
    match selector {
        uapi::MAP_MEMORY => map_memory(map, Caching::WriteCombining),
        uapi::MAP_MEMORY_UNCACHED => map_memory(map, Caching::Uncached),
        uapi::MAP_MEMORY_CACHED => map_memory(map, Caching::Cached),
        uapi::MAP_STATISTICS => map.relative_to(start)?.faulted(1),
        uapi::MAP_EVENTS => map.relative_to(start)?.faulted(device.log().pages()),
        uapi::MAP_USED_RINGS => {
            let queue = page / USED_RING_PAGES;
            let map = map.relative_to(start + queue * USED_RING_PAGES)?;
            hardware.map_coherent(&map, Hardware::used_ring, queue)
        }
        _ => Err(EINVAL),
    }
}

/// The page at a place of the file that was mapped to be faulted. Sleeps.
pub(super) fn fault(device: &Device, page: usize) -> Option<SharedPage> {
    // After unbind nothing comes back to where maps were taken away.
    let _hardware = device.hardware().ok()?;
    match split(page) {
        (uapi::MAP_STATISTICS, 0) => device.stats().page(),
        (uapi::MAP_EVENTS, page) => device.log().page(page),
        _ => None,
    }
}
