// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The regions of a device that can be mapped. `driver/uapi/src/ringbar.rs` describes them.

use std::fmt;
use std::str::FromStr;

use ringbar_uapi as uapi;

/// One region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Device memory, write-combining. Of an ordinary file, its content.
    Memory,
    /// Device memory, uncached.
    Uncached,
    /// Device memory, cached.
    Cached,
    /// The page of counters.
    Statistics,
    /// The event log.
    Events,
    /// Used ring of a queue.
    UsedRing(u16),
}

/// Why a text names no region.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected memory, uncached, cached, statistics, events, or used-rings:N with a queue N")]
pub struct RegionError;

impl Region {
    /// What is added to an offset in the region to get the offset for `mmap`.
    pub fn base(self) -> u64 {
        let (selector, within) = match self {
            Self::Memory => (uapi::MAP_MEMORY, 0),
            Self::Uncached => (uapi::MAP_MEMORY_UNCACHED, 0),
            Self::Cached => (uapi::MAP_MEMORY_CACHED, 0),
            Self::Statistics => (uapi::MAP_STATISTICS, 0),
            Self::Events => (uapi::MAP_EVENTS, 0),
            Self::UsedRing(queue) => (
                uapi::MAP_USED_RINGS,
                u64::from(queue) * uapi::USED_RING_STRIDE,
            ),
        };
        (selector << uapi::MAP_SHIFT) + within
    }

    /// Whether this is the device memory, however cached.
    pub fn is_memory(self) -> bool {
        matches!(self, Self::Memory | Self::Uncached | Self::Cached)
    }
}

impl FromStr for Region {
    type Err = RegionError;

    fn from_str(text: &str) -> Result<Self, RegionError> {
        Ok(match text {
            "memory" => Self::Memory,
            "uncached" => Self::Uncached,
            "cached" => Self::Cached,
            "statistics" => Self::Statistics,
            "events" => Self::Events,
            _ => {
                let queue = text.strip_prefix("used-rings:").ok_or(RegionError)?;
                // `u16::from_str` would accept a sign.
                if !queue.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(RegionError);
                }
                Self::UsedRing(queue.parse().map_err(|_| RegionError)?)
            }
        })
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Uncached => "uncached",
            Self::Cached => "cached",
            Self::Statistics => "statistics",
            Self::Events => "events",
            Self::UsedRing(queue) => return write!(f, "used-rings:{queue}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Region; 7] = [
        Region::Memory,
        Region::Uncached,
        Region::Cached,
        Region::Statistics,
        Region::Events,
        Region::UsedRing(0),
        Region::UsedRing(u16::MAX),
    ];

    #[test]
    fn names_are_read_as_they_are_written() {
        for region in ALL {
            assert_eq!(region.to_string().parse(), Ok(region));
        }
    }

    #[test]
    fn other_names_are_refused() {
        for text in [
            "",
            "Memory",
            "memory ",
            "used-rings",
            "used-rings:",
            "used-rings:+1",
            "used-rings:65536",
            "used-rings:0x1",
            "events:1",
        ] {
            assert_eq!(text.parse::<Region>(), Err(RegionError), "{text:?}");
        }
    }

    #[test]
    fn the_base_holds_the_selector() {
        assert_eq!(Region::Memory.base(), 0);
        for (region, selector) in [
            (Region::Uncached, uapi::MAP_MEMORY_UNCACHED),
            (Region::Cached, uapi::MAP_MEMORY_CACHED),
            (Region::Statistics, uapi::MAP_STATISTICS),
            (Region::Events, uapi::MAP_EVENTS),
            (Region::UsedRing(7), uapi::MAP_USED_RINGS),
            (Region::UsedRing(u16::MAX), uapi::MAP_USED_RINGS),
        ] {
            assert_eq!(region.base() >> uapi::MAP_SHIFT, selector, "{region}");
        }
        assert_eq!(
            Region::UsedRing(3).base() - Region::UsedRing(2).base(),
            uapi::USED_RING_STRIDE
        );
    }
}
