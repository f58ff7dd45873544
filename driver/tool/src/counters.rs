// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The counters of a device, in the region `statistics`.

use ringbar_uapi as uapi;

use crate::device::Device;
use crate::error::Result;
use crate::region::Region;
use crate::sys::mapping::Mapping;

/// Names of the counters, and their places.
const NAMES: [(&str, usize); 3] = [
    ("requests", uapi::COUNTER_REQUESTS),
    ("doorbells", uapi::COUNTER_DOORBELLS),
    ("interrupts", uapi::COUNTER_INTERRUPTS),
];

/// The mapped counters of a device.
#[derive(Debug)]
pub struct Counters(Mapping);

impl Counters {
    /// Maps the counters.
    pub fn map(device: &Device) -> Result<Self> {
        device.map_all(Region::Statistics).map(Self)
    }

    /// Names and current values. Each value is one load; the values may belong to different
    /// moments.
    pub fn read(&self) -> [(&'static str, u64); NAMES.len()] {
        NAMES.map(|(name, place)| (name, self.0.word(place)))
    }
}
