// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether a worker busy-polls empty rings instead of sleeping until the doorbell rings.
//!
//! While the worker polls, the driver need not ring the doorbell, which costs the guest an
//! exit and the worker a wake-up. Polling wastes a CPU where the next request does not come
//! soon, and worse where the guest needs the CPU to make it. So a worker whose polls miss
//! skips a number of them that doubles, and the worker of an idle device sleeps. A poll that
//! finds something late is a miss as well, unless it took less time than the requests before
//! it: a slow driver would keep the worker busy for little work.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Which part of the longest poll is worth what it saves.
const LATE_DIVISOR: u32 = 2;

/// What one worker has seen of late.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    backoff: Backoff,
    /// When the worker was woken, or the last poll ended.
    since: Instant,
}

impl Polling {
    /// For queues that nothing is known of. A poll lasts at most `limit`; zero disables
    /// polling.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            backoff: Backoff::default(),
            since: Instant::now(),
        }
    }

    /// Whether to poll before the worker sleeps this time. To be asked once for each time
    /// that the worker is woken.
    pub(crate) fn should_poll(&mut self) -> bool {
        self.should_poll_by(Instant::now)
    }

    fn should_poll_by(&mut self, clock: impl Fn() -> Instant) -> bool {
        if self.limit.is_zero() || !self.backoff.should_try() {
            return false;
        }
        self.since = clock();
        true
    }

    /// Calls `check` with the time until it finds something (`Some(true)`), or there is
    /// nothing to poll any more (`None`), or the time is up. Returns whether something was
    /// found.
    pub(crate) fn poll(&mut self, check: impl FnMut(Instant) -> Option<bool>) -> bool {
        self.poll_by(Instant::now, check)
    }

    fn poll_by(
        &mut self,
        clock: impl Fn() -> Instant,
        mut check: impl FnMut(Instant) -> Option<bool>,
    ) -> bool {
        let start = clock();
        let useful = start.duration_since(self.since);
        let mut now = start;
        let found = loop {
            match check(now) {
                None => return false,
                Some(true) => break true,
                Some(false) if now.duration_since(start) >= self.limit => break false,
                Some(false) => std::hint::spin_loop(),
            }
            now = clock();
        };
        self.since = now;
        let waited = now.duration_since(start);
        let late = waited > self.limit / LATE_DIVISOR && waited > useful;
        match found && !late {
            true => self.backoff.hit(),
            false => self.backoff.miss(),
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn polls_until_there_is_something() {
        let mut polling = Polling::new(Duration::from_secs(1000));
        for rounds in [1, 2, 100] {
            let mut left = rounds;
            assert!(polling.poll(|_| {
                left -= 1;
                Some(left == 0)
            }));
            assert_eq!(left, 0);
        }
        assert!(!polling.poll(|_| None));
        assert!(polling.should_poll());
    }

    /// A clock that goes on by a microsecond each time that it is read.
    struct Clock(Cell<Instant>);

    impl Clock {
        fn new() -> Self {
            Self(Cell::new(Instant::now()))
        }

        fn now(&self) -> Instant {
            self.pass(Duration::from_micros(1));
            self.0.get()
        }

        fn pass(&self, time: Duration) {
            self.0.set(self.0.get() + time);
        }

        /// Polls for a request that comes after `wait`. Returns whether it did.
        fn poll_for(&self, polling: &mut Polling, wait: Duration) -> bool {
            polling.should_poll_by(|| self.now()) && self.poll_until(polling, wait)
        }

        fn poll_until(&self, polling: &mut Polling, wait: Duration) -> bool {
            let start = self.now();
            polling.poll_by(
                || self.now(),
                |now| Some(now.saturating_duration_since(start) >= wait),
            )
        }
    }

    #[test]
    fn ho14_a_slow_driver_does_not_keep_the_worker_busy() {
        const LIMIT: Duration = Duration::from_millis(1);
        let (mut polling, clock) = (Polling::new(LIMIT), Clock::new());
        let polling = &mut polling;
        let slow = LIMIT * 3 / 4;
        let polls = (0..200).filter(|_| clock.poll_for(polling, slow)).count();
        assert!((1..20).contains(&polls), "{polls} of 200");
        // Where each request takes as long as the wait for the next one, that is worthwhile.
        while !clock.poll_for(polling, Duration::ZERO) {}
        for _ in 0..20 {
            assert!(polling.should_poll_by(|| clock.now()));
            clock.pass(LIMIT);
            assert!(clock.poll_until(polling, slow));
        }
        // A quick one is polled for as soon as that shows.
        while !clock.poll_for(polling, Duration::ZERO) {}
        assert!((0..100).all(|_| clock.poll_for(polling, Duration::ZERO)));
    }

    #[test]
    fn misses_are_followed_by_skips() {
        let mut polling = Polling::new(Duration::from_nanos(1));
        let mut polls = 0;
        while polling.should_poll() {
            polls += 1;
            assert!(!polling.poll(|_| Some(false)));
        }
        assert!((1..10).contains(&polls), "{polls} polls");
    }

    #[test]
    fn a_limit_of_zero_disables_polling() {
        let mut polling = Polling::new(Duration::ZERO);
        assert!((0..100).all(|_| !polling.should_poll()));
    }
}
