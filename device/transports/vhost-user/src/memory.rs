// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The monitor's memory table as guest memory for requests.

use std::fs::File;
use std::sync::Arc;

use tracing::debug;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// Guest memory without the regions that show the device's own memory. `is_device_memory`
/// says whether a file holds it.
///
/// Once the aperture is mapped, QEMU lists it in the memory table like any other memory. A
/// request with a segment in the aperture would copy the device memory onto itself at another
/// address. Without that region the segment is not in guest memory, and the request is refused.
pub(crate) fn without_device_memory(
    table: &GuestMemoryMmap,
    is_device_memory: impl Fn(&File) -> bool,
) -> GuestMemoryMmap {
    let mut regions = Vec::new();
    for region in table.iter() {
        let file = region.file_offset();
        let own = file.is_some_and(|offset| is_device_memory(offset.file()));
        debug!(
            address = format_args!("{:#x}", region.start_addr().0),
            bytes = region.len(),
            own,
            "region of the memory table"
        );
        if !own {
            let region = GuestRegionMmap::with_arc(region.get_mmap(), region.start_addr());
            regions.extend(region.map(Arc::new));
        }
    }
    debug!(regions = regions.len(), "new memory table");
    // Fails for an empty list only: the order is that of a valid table.
    GuestMemoryMmap::from_arc_regions(regions).unwrap_or_default()
}
