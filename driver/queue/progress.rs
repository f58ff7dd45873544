// SPDX-License-Identifier: GPL-2.0

//! Whether a device makes progress. Pure: the caller passes all observations.

/// Whether a device makes progress: the time for which it has used no entry.
pub(super) struct Progress {
    /// Index up to which used entries were taken, as of [`Ring::taken`].
    ///
    /// [`Ring::taken`]: crate::virtio::ring::Ring::taken
    taken: u16,
    /// Number of watchdog ticks without a change of `taken`.
    ticks: u8,
}

impl Progress {
    /// For a ring of which no used entry was taken.
    pub(super) fn new() -> Self {
        Self { taken: 0, ticks: 0 }
    }

    /// Counts a watchdog tick at which used entries were taken up to `taken`.
    pub(super) fn count(&mut self, taken: u16) {
        self.ticks = if taken == self.taken {
            self.ticks.saturating_add(1)
        } else {
            0
        };
        self.taken = taken;
    }

    /// Whether the device is stuck, if the oldest request has been in flight for `oldest` ticks:
    /// for more than `limit` without a used entry, or for [`MAX_AGE`] times as many in any case.
    pub(super) fn is_stuck(&self, oldest: u8, limit: u8) -> bool {
        oldest > limit && self.ticks >= limit || oldest > limit.saturating_mul(MAX_AGE)
    }
}

/// Factor by which a request may take longer while the device completes others: many slow requests
/// wait for each other.
pub(super) const MAX_AGE: u8 = 4;

#[kernel::macros::kunit_tests(ringbar_progress)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_nothing_is_stuck() {
        let mut progress = Progress::new();
        for age in 1..=8 {
            progress.count(0);
            assert!(!progress.is_stuck(age, 8));
        }
        progress.count(0);
        assert!(progress.is_stuck(9, 8));
    }

    #[test]
    fn a_device_that_makes_progress_has_longer() {
        let mut progress = Progress::new();
        for age in 1..=32 {
            progress.count(age.into());
            assert!(!progress.is_stuck(age, 8));
        }
        progress.count(33);
        assert!(progress.is_stuck(33, 8));
    }

    #[test]
    fn a_device_that_stops_is_stuck_a_while_later() {
        let mut progress = Progress::new();
        progress.count(5);
        for _ in 0..7 {
            progress.count(5);
            assert!(!progress.is_stuck(20, 8));
        }
        progress.count(5);
        assert!(progress.is_stuck(20, 8));
        // A request that was submitted after a pause is young all the same.
        assert!(!progress.is_stuck(1, 8));
    }
}
