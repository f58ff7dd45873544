// SPDX-License-Identifier: GPL-2.0

//! The contents of maps, by the selector in the offset. See [`uapi`].

use crate::{
    abstractions::mm::{
        caching::Caching,
        vma::{
            map_coherent,
            map_device, //
            Installed,
            Mapped,
            NewMap,
            PageFault,
        }, //
    },
    device::Device,
    hardware::Hardware,
    map_layout::{
        split,
        USED_RING_PAGES, //
    },
    uapi, //
};
use kernel::{
    dma::Coherent,
    io::io_read,
    prelude::*, //
};

/// Size in bytes of the numbers that a used ring consists of.
const WORD: usize = size_of::<u32>();

/// Makes the map. Sleeps. `ENODEV` after unbind, and for device memory that is not behind the
/// aperture; `EINVAL` if the offset selects nothing. For device memory also the errors of
/// [`map_device`].
pub(super) fn map<'a>(device: &Device, map: NewMap<'a>) -> Result<Mapped<'a>> {
    let hardware = device.hardware()?;
    let (selector, page) = split(map.first_page());
    let start = map.first_page() - page;
    let map_memory = |map: NewMap<'a>, caching| {
        let pages = device.mappable().check()?;
        let memory = hardware.part(Hardware::aperture).ok_or(ENODEV)?;
        map_device(&memory, map.relative_to(start)?, pages, caching)
    };
    match selector {
        uapi::MAP_MEMORY => map_memory(map, Caching::WriteCombining),
        uapi::MAP_MEMORY_UNCACHED => map_memory(map, Caching::Uncached),
        uapi::MAP_MEMORY_CACHED => map_memory(map, Caching::Cached),
        uapi::MAP_STATISTICS => map.relative_to(start)?.faulted(1),
        uapi::MAP_EVENTS => map.relative_to(start)?.faulted(device.log().pages()),
        uapi::MAP_USED_RINGS => {
            let queue = page / USED_RING_PAGES;
            let ring = hardware.part(|hardware| hardware.used_ring(queue));
            map_coherent(
                &ring.ok_or(EINVAL)?,
                map.relative_to(start + queue * USED_RING_PAGES)?,
            )
        }
        _ => Err(EINVAL),
    }
}

/// Inserts the page that the map shows at the address of the fault. Sleeps. `ENODEV` after unbind.
pub(super) fn fault(device: &Device, fault: PageFault<'_>) -> Result<Installed> {
    let hardware = device.hardware()?;
    match split(fault.page()) {
        (uapi::MAP_STATISTICS, 0) => fault.install(device.stats().page(), &hardware),
        (uapi::MAP_EVENTS, page) => {
            let page = device.log().page(page).ok_or(EINVAL)?;
            fault.install(&page, &hardware)
        }
        _ => Err(EINVAL),
    }
}

/// Reads the contents of the map of a used ring from byte `offset` of the file on. Sleeps. `ENODEV`
/// after unbind.
pub(super) fn peek(device: &Device, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let hardware = device.hardware()?;
    let within = offset
        .checked_sub(uapi::MAP_USED_RINGS << uapi::MAP_SHIFT)
        .ok_or(EINVAL)?;
    // CAST: 64 bits both.
    let (queue, start) = (
        (within / uapi::USED_RING_STRIDE) as usize,
        (within % uapi::USED_RING_STRIDE) as usize,
    );
    let ring: &Coherent<[u32]> = hardware.used_ring(queue).ok_or(EINVAL)?;
    let mut word = [0; WORD];
    for (n, byte) in buffer.iter_mut().enumerate() {
        let at = start + n;
        if n == 0 || at % WORD == 0 {
            // The rest of the last page does not belong to the ring, and reads as 0.
            word = match ring.size().checked_sub(at) {
                Some(1..) => io_read!(ring, [try: at / WORD]),
                _ => 0,
            }
            .to_ne_bytes();
        }
        *byte = word[at % WORD];
    }
    Ok(buffer.len())
}
