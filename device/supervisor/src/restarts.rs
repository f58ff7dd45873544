// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How often and how soon a worker that has crashed is started again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Greatest number of crashes in [`WINDOW`], with the last one of which the supervisor ends.
pub(crate) const MAX_CRASHES: usize = 5;

/// Time in which crashes are counted.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// Delay after the second crash in the window. It doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// The crashes of late.
#[derive(Debug, Default)]
pub(crate) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// A worker has crashed. Returns when another one is started, `None` where there were too
    /// many crashes.
    pub(crate) fn crashed(&mut self, now: Instant) -> Option<Instant> {
        while (self.0.front()).is_some_and(|first| now.saturating_duration_since(*first) > WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        let before = self.0.len().saturating_sub(1);
        if self.0.len() >= MAX_CRASHES {
            return None;
        }
        let delay = match before {
            0 => Duration::ZERO,
            // Few: the number is limited above.
            more => FIRST_DELAY * (1 << (more - 1)),
        };
        now.checked_add(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_until_there_were_too_many() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let mut delay = || restarts.crashed(now).map(|at| (at - now).as_millis());
        assert_eq!([delay(), delay(), delay()], [Some(0), Some(50), Some(100)]);
        assert_eq!([delay(), delay()], [Some(200), None]);
    }

    #[test]
    fn crashes_of_long_ago_do_not_count() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        for number in 0..100 {
            assert!(restarts.crashed(now + number * WINDOW / 3).is_some());
        }
    }
}
