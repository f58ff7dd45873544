// SPDX-License-Identifier: GPL-2.0

//! Whether a device makes progress. Pure: the caller passes all observations.

/// Whether a device makes progress: the time for which it has used no entry.
pub(super) struct Progress {
    /// Index up to which used entries were taken, as of [`Ring::taken`].
    ///
    /// [`Ring::taken`]: crate::virtio::ring::Ring::taken
    taken: u16,
    /// Number of watchdog ticks without a change of `taken`.
    ticks: u16,
    /// Number of watchdog ticks in a row at which there were used entries that were not taken, of
    /// which `taken` was the first.
    untaken: u16,
}

impl Progress {
    /// For a ring of which no used entry was taken.
    pub(super) fn new() -> Self {
        Self {
            taken: 0,
            ticks: 0,
            untaken: 0,
        }
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

    /// Counts a watchdog tick before [`Self::count`]: whether there were used entries from `taken`
    /// on that were not taken. Returns for how many ticks the first of them has waited: since its
    /// interrupt was lost, or was late.
    pub(super) fn count_untaken(&mut self, taken: u16, has_used: bool) -> u16 {
        self.untaken = match has_used {
            true if taken == self.taken => self.untaken.saturating_add(1),
            true => 1,
            false => 0,
        };
        self.untaken.saturating_sub(1)
    }

    /// The used entries that waited were taken after [`Self::count_untaken`]: those that wait at the
    /// next tick have waited for none.
    pub(super) fn took_untaken(&mut self) {
        self.untaken = 0;
    }

    /// Whether the device is stuck, if the oldest request has been in flight for `oldest` ticks, and
    /// the device has used entries up to `used`: for more than `limit` without a used entry, or for
    /// [`MAX_AGE`] times as many in any case. Entries that were used since the last tick, or that
    /// were not taken because their interrupt is late or lost, are used entries, too.
    pub(super) fn is_stuck(&self, oldest: u16, limit: u16, used: u16) -> bool {
        let without_progress = self.ticks >= limit && used == self.taken;
        oldest > limit && without_progress || oldest > limit.saturating_mul(MAX_AGE)
    }
}

/// Factor by which a request may take longer while the device completes others: many slow requests
/// wait for each other.
pub(crate) const MAX_AGE: u16 = 4;

#[kernel::macros::kunit_tests(ringbar_progress)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_nothing_is_stuck() {
        let mut progress = Progress::new();
        for age in 1..=8 {
            progress.count(0);
            assert!(!progress.is_stuck(age, 8, 0));
        }
        progress.count(0);
        assert!(progress.is_stuck(9, 8, 0));
    }

    #[test]
    fn a_device_that_makes_progress_has_longer() {
        let mut progress = Progress::new();
        for age in 1..=32 {
            progress.count(age);
            assert!(!progress.is_stuck(age, 8, age));
        }
        progress.count(33);
        assert!(progress.is_stuck(33, 8, 33));
    }

    #[test]
    fn entries_that_nobody_takes_are_progress() {
        let mut progress = Progress::new();
        for age in 1..=32 {
            progress.count(0);
            assert!(!progress.is_stuck(age, 8, 1));
        }
        // But not for ever: the oldest request is not among them.
        progress.count(0);
        assert!(progress.is_stuck(33, 8, 1));
    }

    #[test]
    fn a_device_that_has_used_an_entry_since_the_tick_is_not_stuck() {
        let mut progress = Progress::new();
        for _ in 0..=8 {
            progress.count(u16::MAX);
        }
        assert!(progress.is_stuck(9, 8, u16::MAX));
        assert!(!progress.is_stuck(9, 8, 0));
    }

    #[test]
    fn an_entry_that_waits_is_not_one_that_comes_and_goes() {
        let mut progress = Progress::new();
        let mut waits = |taken, has_used| {
            let ticks = progress.count_untaken(taken, has_used);
            progress.count(taken);
            ticks
        };
        assert_eq!(waits(0, true), 0);
        assert_eq!(waits(0, true), 1);
        assert_eq!(waits(0, true), 2);
        // Taken; another one waits.
        assert_eq!(waits(1, true), 0);
        assert_eq!(waits(1, true), 1);
        assert_eq!(waits(2, false), 0);
        assert_eq!(waits(2, true), 0);
    }

    #[test]
    fn an_entry_after_one_that_was_found_has_not_waited() {
        let mut progress = Progress::new();
        for ticks in 0..=8 {
            assert_eq!(progress.count_untaken(0, true), ticks);
            if ticks < 8 {
                progress.count(0);
            }
        }
        progress.took_untaken();
        progress.count(1);
        assert_eq!(progress.count_untaken(1, true), 0);
        progress.count(1);
        assert_eq!(progress.count_untaken(1, true), 1);
    }

    #[test]
    fn a_device_that_stops_is_stuck_a_while_later() {
        let mut progress = Progress::new();
        progress.count(5);
        for _ in 0..7 {
            progress.count(5);
            assert!(!progress.is_stuck(20, 8, 5));
        }
        progress.count(5);
        assert!(progress.is_stuck(20, 8, 5));
        // A request that was submitted after a pause is young all the same.
        assert!(!progress.is_stuck(1, 8, 5));
    }
}
