// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Completed requests of each queue, in the maps of the used rings.
//!
//! A used ring has an index of 16 bits, which counts the used entries (VIRTIO 1.3, 2.7.8). So it is
//! sampled often, and the differences are added up. A reset sets the index to 0; the event log tells
//! that there was one.

use std::time::Duration;

use serde::Serialize;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::range::Range;
use crate::region::Region;
use crate::sys::mapping::Mapping;

/// Time between two samples: up to 3 million requests per second in a queue are counted.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// Roles of the control queue and of the other queues of the map.
const ROLES: [&str; 2] = ["control", "io"];

/// The used rings of a device.
pub struct UsedRings {
    rings: Vec<Mapping>,
    events: Mapping,
    counts: Counts,
}

/// Sums of the used entries of each queue.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Number of events at the last sample.
    events: u64,
    /// Index at the last sample, and sum.
    queues: Vec<(u16, u64)>,
}

/// Completed requests of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Completed {
    /// Number of the queue in the map: the control queue, then the I/O queues. The event queue of
    /// the device, its queue 1, is not in the map.
    pub queue: usize,
    /// What the queue is for.
    pub role: &'static str,
    /// Number of used entries since the program has begun to count.
    pub total: u64,
}

impl UsedRings {
    /// Maps the used rings of all queues, and begins to count.
    pub fn map(device: &Device) -> Result<Self> {
        let events = device.map_all(Region::Events)?;
        // The index is in the first 8 bytes.
        let range = Range {
            start: 0,
            length: 8,
        };
        let mut rings = Vec::new();
        for queue in 0..=u16::MAX {
            match device.map(Region::UsedRing(queue), range) {
                Ok(ring) => rings.push(ring),
                Err(Error::Map { .. }) if !rings.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        let mut this = Self {
            rings,
            events,
            counts: Counts::default(),
        };
        this.sample();
        Ok(this)
    }

    /// Adds what was completed since the last sample.
    pub fn sample(&mut self) {
        let events = self.events.word(0);
        // Flags and index are 16 bits each, little-endian.
        let indices = self.rings.iter().map(|ring| (ring.word(0) >> 16) as u16);
        self.counts.add(events, indices);
    }

    /// The sums of all queues.
    pub fn completed(&self) -> Vec<Completed> {
        let sums = self.counts.queues.iter().enumerate();
        sums.map(|(queue, (_, total))| Completed {
            queue,
            role: ROLES[queue.min(1)],
            total: *total,
        })
        .collect()
    }
}

impl Counts {
    fn add(&mut self, events: u64, indices: impl Iterator<Item = u16>) {
        // After an event the device may have been reset, so the indices are a new start.
        let restarted = events != self.events;
        self.events = events;
        for (queue, index) in indices.enumerate() {
            match self.queues.get_mut(queue) {
                None => self.queues.push((index, 0)),
                Some((last, total)) => {
                    if !restarted {
                        *total += u64::from(index.wrapping_sub(*last));
                    }
                    *last = index;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_the_roles() {
        let roles = ROLES.map(|role| format!("`{role}`")).join(", ");
        let expected = format!("`role` ({roles})");
        let document = include_str!("../../../docs/tool.md");
        assert!(document.contains(&expected), "no {expected}");
    }

    #[test]
    fn indices_that_wrap_around_are_added_up() {
        let mut counts = Counts::default();
        for indices in [[65_530, 7], [65_535, 7], [3, 8]] {
            counts.add(1, indices.into_iter());
        }
        assert_eq!(counts.queues, [(3, 9), (8, 1)]);
    }

    #[test]
    fn a_reset_is_no_completion_of_65536_requests() {
        let mut counts = Counts::default();
        for (events, index) in [(1, 100), (1, 110), (3, 2), (3, 5)] {
            counts.add(events, [index].into_iter());
        }
        assert_eq!(counts.queues, [(5, 13)]);
    }
}
