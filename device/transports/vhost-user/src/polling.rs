// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether it pays to look for the next request in an empty ring, instead of
//! sleeping until the driver kicks.
//!
//! While the device looks, the driver need not kick, which costs the guest an
//! exit and the device a wake-up. It is lost time where the next request does not
//! come soon, and worse where the guest needs the CPU to make it. So rings
//! that were looked at in vain are left alone for a number of times that doubles, and an
//! idle device sleeps.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// What one worker has seen of late.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    backoff: Backoff,
}

impl Polling {
    /// For queues that nothing is known of, to be looked at for at most `limit` at
    /// a time; not at all where that is zero.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            backoff: Backoff::default(),
        }
    }

    /// Whether to look when the ring is empty this time. To be asked once for each
    /// kick.
    pub(crate) const fn is_due(&mut self) -> bool {
        !self.limit.is_zero() && self.backoff.is_due()
    }

    /// Calls `look` with the time until it finds something (`Some(true)`), or there is
    /// nothing to look at any more (`None`), or the time is up. Returns whether
    /// something was found.
    pub(crate) fn poll(&mut self, mut look: impl FnMut(Instant) -> Option<bool>) -> bool {
        let start = Instant::now();
        let mut now = start;
        loop {
            match look(now) {
                Some(true) => {
                    self.backoff.learn(true);
                    return true;
                }
                None => return false,
                Some(false) if now.duration_since(start) >= self.limit => break,
                Some(false) => std::hint::spin_loop(),
            }
            now = Instant::now();
        }
        self.backoff.learn(false);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_until_there_is_something() {
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
        assert!(polling.is_due());
    }

    #[test]
    fn in_vain_has_it_left_out() {
        let mut polling = Polling::new(Duration::from_nanos(1));
        let mut looked = 0;
        while polling.is_due() {
            looked += 1;
            assert!(!polling.poll(|_| Some(false)));
        }
        assert!((1..10).contains(&looked), "{looked} times");
    }

    #[test]
    fn without_a_limit_nobody_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        assert!((0..100).all(|_| !polling.is_due()));
    }
}
