// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The counters of a device, in the region `statistics`.

use std::time::Duration;

use ringbar_uapi as uapi;
use serde::Serialize;

use crate::device::Device;
use crate::error::Result;
use crate::region::Region;
use crate::sys::mapping::Mapping;
use crate::transfer::measurement::per_second;

/// The mapped counters of a device.
#[derive(Debug)]
pub struct Counters(Mapping);

/// Values of the counters, or their increases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Values {
    /// Requests that were submitted to the device.
    pub requests: u64,
    /// Notifications of the device.
    pub doorbells: u64,
    /// Interrupts that were handled.
    pub interrupts: u64,
    /// Data segments that were submitted.
    pub segments: u64,
}

impl Counters {
    /// Maps the counters.
    pub fn map(device: &Device) -> Result<Self> {
        device.map_all(Region::Statistics).map(Self)
    }

    /// Current values. Each value is one load; the values may belong to different moments.
    pub fn read(&self) -> Values {
        Values {
            requests: self.0.word(uapi::COUNTER_REQUESTS),
            doorbells: self.0.word(uapi::COUNTER_DOORBELLS),
            interrupts: self.0.word(uapi::COUNTER_INTERRUPTS),
            segments: self.0.word(uapi::COUNTER_SEGMENTS),
        }
    }
}

impl Values {
    /// The values with their names.
    pub fn named(self) -> [(&'static str, u64); 4] {
        [
            ("requests", self.requests),
            ("doorbells", self.doorbells),
            ("interrupts", self.interrupts),
            ("segments", self.segments),
        ]
    }

    /// The increase since `earlier`. Counters wrap around to 0.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.wrapping_sub(earlier.requests),
            doorbells: self.doorbells.wrapping_sub(earlier.doorbells),
            interrupts: self.interrupts.wrapping_sub(earlier.interrupts),
            segments: self.segments.wrapping_sub(earlier.segments),
        }
    }

    /// An increase in `elapsed` as rates per second.
    pub fn per_second(self, elapsed: Duration) -> Self {
        let rate = |count| per_second(count, elapsed);
        Self {
            requests: rate(self.requests),
            doorbells: rate(self.doorbells),
            interrupts: rate(self.interrupts),
            segments: rate(self.segments),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increases_and_rates_of_counters_that_wrap_around() {
        let earlier = Values {
            requests: u64::MAX,
            doorbells: 5,
            interrupts: 7,
            segments: 0,
        };
        let now = Values {
            requests: 9,
            doorbells: 6,
            interrupts: 7,
            segments: 1000,
        };
        let increase = now.since(earlier);
        assert_eq!(increase.named().map(|(_, value)| value), [10, 1, 0, 1000]);
        let rates = increase.per_second(Duration::from_millis(250));
        assert_eq!(rates.named().map(|(_, value)| value), [40, 4, 0, 4000]);
    }
}
