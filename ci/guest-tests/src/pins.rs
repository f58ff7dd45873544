// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counts the pages that are pinned for DMA.

use std::fs;
use std::io;

/// Reading this file sums the per-CPU counters.
pub const REFRESH: &str = "/proc/sys/vm/stat_refresh";

/// The file with the sums.
pub const TABLE: &str = "/proc/vmstat";

/// Numbers of pages pinned for DMA and unpinned since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pins {
    /// `nr_foll_pin_acquired`
    pub acquired: u64,
    /// `nr_foll_pin_released`
    pub released: u64,
}

impl Pins {
    /// Reads the counters of the running kernel.
    pub fn read() -> io::Result<Self> {
        fs::read(REFRESH)?;
        Self::parse(&fs::read_to_string(TABLE)?)
            .ok_or_else(|| io::Error::other(format!("{TABLE} does not count pinned pages")))
    }

    /// Parses the text of [`TABLE`].
    pub fn parse(vmstat: &str) -> Option<Self> {
        let value = |name| {
            vmstat.lines().find_map(|line| {
                let (key, value) = line.split_once(' ')?;
                (key == name).then(|| value.parse().ok())?
            })
        };
        Some(Self {
            acquired: value("nr_foll_pin_acquired")?,
            released: value("nr_foll_pin_released")?,
        })
    }

    /// Whether all pages were unpinned.
    pub fn balanced(self) -> bool {
        self.acquired == self.released
    }

    /// Number of pins at present. A page counts once per pin.
    pub fn pinned(self) -> u64 {
        self.acquired.saturating_sub(self.released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_found_among_the_others() {
        let text = "nr_free_pages 1\nnr_foll_pin_acquired 423577\nnr_foll_pin_released 423570\n";
        let pins = Pins::parse(text).unwrap();
        assert_eq!(pins.acquired, 423_577);
        assert!(!pins.balanced());
        assert_eq!(pins.pinned(), 7);
        assert_eq!(Pins::parse("nr_free_pages 1\n"), None);
    }
}
