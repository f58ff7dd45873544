// SPDX-License-Identifier: GPL-2.0

//! The time that a request may take, and the clock of the watchdog that measures it.
//!
//! The watchdog counts ticks: submission costs nothing for it. It ticks without a time limit, too,
//! because it also finds interrupts that were lost.

use crate::abstractions::sysfs;
use core::num::NonZero;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Greatest time limit in seconds: so that [`MAX_AGE`] times as many ticks fit into 16 bits.
///
/// [`MAX_AGE`]: crate::queue::progress::MAX_AGE
const MAX_S: u32 = 65_535;

/// Smallest number of ticks in a time limit. A larger number makes the limit more exact.
const MIN_TICKS: NonZero<u32> = NonZero::<u32>::MIN.saturating_add(7);

/// Greatest time between two ticks, in milliseconds.
const MAX_PERIOD_MS: u32 = 5000;

/// Time after which a used entry was not just overlooked, in milliseconds: its interrupt was lost.
const LOST_MS: u32 = 1000;

/// The ticks of the watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// Time between two ticks in milliseconds.
    pub(crate) period_ms: u32,
    /// Number of ticks that a request may be in flight.
    pub(crate) limit: Option<u16>,
    /// Number of ticks after which the interrupt of a used entry was lost.
    pub(crate) lost: u16,
}

impl Clock {
    /// For requests that may take `seconds`, if there is a limit.
    fn new(seconds: Option<NonZero<u32>>) -> Self {
        let (period_ms, limit) = match seconds {
            None => (MAX_PERIOD_MS, None),
            Some(seconds) => {
                let ms = seconds.get().min(MAX_S).saturating_mul(1000);
                let ticks = NonZero::new(ms.div_ceil(MAX_PERIOD_MS))
                    .map_or(MIN_TICKS, |ticks| ticks.max(MIN_TICKS));
                // CAST: At most `MAX_S` / 5.
                (ms / ticks, Some(ticks.get() as u16))
            }
        };
        let period = NonZero::new(period_ms).unwrap_or(NonZero::<u32>::MIN);
        Self {
            period_ms,
            limit,
            // CAST: At most `LOST_MS`.
            lost: (LOST_MS / period) as u16 + 1,
        }
    }
}

/// The time that a request of a device may take, which can change at any time.
pub(crate) struct Timeout {
    /// Seconds; 0 for no limit.
    seconds: Atomic<u32>,
    /// The value at the last tick.
    applied: Atomic<u32>,
}

impl Timeout {
    /// A limit in seconds, as in the module parameter: 0 for none, at most [`MAX_S`].
    pub(crate) fn new(seconds: u32) -> Self {
        let seconds = seconds.min(MAX_S);
        Self {
            seconds: Atomic::new(seconds),
            applied: Atomic::new(seconds),
        }
    }

    /// The clock for the present limit.
    pub(crate) fn clock(&self) -> Clock {
        Clock::new(NonZero::new(self.seconds.load(Relaxed)))
    }

    /// The clock for the present limit, and whether it is another one than at the last call. To be
    /// called by each tick.
    pub(crate) fn tick(&self) -> (Clock, bool) {
        let seconds = self.seconds.load(Relaxed);
        let has_changed = self.applied.load(Relaxed) != seconds;
        self.applied.store(seconds, Relaxed);
        (Clock::new(NonZero::new(seconds)), has_changed)
    }
}

impl sysfs::Number for Timeout {
    fn get(&self) -> u32 {
        self.seconds.load(Relaxed)
    }

    fn set(&self, value: u32) -> Result {
        if value > MAX_S {
            return Err(EINVAL);
        }
        self.seconds.store(value, Relaxed);
        Ok(())
    }
}

#[kernel::macros::kunit_tests(ringbar_timeout)]
mod tests {
    use super::*;
    use crate::queue::progress::MAX_AGE;

    fn clock(seconds: u32) -> Clock {
        Timeout::new(seconds).clock()
    }

    #[test]
    fn without_a_limit_the_clock_ticks() {
        let clock = clock(0);
        assert_eq!(clock.limit, None);
        assert_eq!((clock.period_ms, clock.lost), (MAX_PERIOD_MS, 1));
    }

    #[test]
    fn the_ticks_of_a_limit_are_the_limit() {
        for seconds in [1, 2, 30, 40, 41, 120, 3600, MAX_S, MAX_S + 1, u32::MAX] {
            let clock = clock(seconds);
            let limit = clock.limit.map_or(0, u32::from);
            let ms = clock.period_ms * limit;
            let expected = seconds.min(MAX_S) * 1000;
            assert!(ms <= expected && expected - ms < limit);
            assert!(clock.period_ms <= MAX_PERIOD_MS && limit >= MIN_TICKS.get());
            assert!(limit * u32::from(MAX_AGE) <= u32::from(u16::MAX));
            assert!(u32::from(clock.lost) * clock.period_ms >= LOST_MS);
        }
    }

    #[test]
    fn a_change_is_seen_once() {
        let timeout = Timeout::new(0);
        assert!(!timeout.tick().1);
        assert_eq!(sysfs::Number::set(&timeout, 2), Ok(()));
        assert_eq!(timeout.tick(), (clock(2), true));
        assert!(!timeout.tick().1);
        assert_eq!(sysfs::Number::set(&timeout, MAX_S + 1), Err(EINVAL));
        assert_eq!(sysfs::Number::get(&timeout), 2);
    }
}
