// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether it pays to look for the next request in an empty ring, instead of
//! sleeping until the driver kicks.
//!
//! While the device looks, the driver need not kick, which costs the guest an
//! exit and the device a wake-up. It is lost time where the next request does not
//! come soon, and worse where the guest needs the CPU to make it. So a queue that
//! was looked at in vain is left alone for a number of times that doubles, and an
//! idle device sleeps.

use std::time::{Duration, Instant};

/// The binary logarithm of the most times that looking is left out.
const MAX_BACKOFF: u32 = 6;

/// What one queue has seen of late.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    /// Times to come that are left out.
    skip: u32,
    /// How often in a row it was in vain, up to [`MAX_BACKOFF`].
    failures: u32,
}

impl Polling {
    /// For a queue that nothing is known of, to be looked at for at most `limit` at
    /// a time; not at all where that is zero.
    pub(crate) const fn new(limit: Duration) -> Self {
        Self {
            limit,
            skip: 0,
            failures: 0,
        }
    }

    /// Whether to look when the ring is empty this time. To be asked once for each
    /// kick.
    pub(crate) const fn is_due(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        !self.limit.is_zero()
    }

    /// Calls `look` until it finds something (`Some(true)`), or there is nothing to
    /// look at any more (`None`), or the time is up. Returns whether something was
    /// found.
    pub(crate) fn poll(&mut self, mut look: impl FnMut() -> Option<bool>) -> bool {
        let start = Instant::now();
        loop {
            match look() {
                Some(true) => {
                    self.failures = 0;
                    return true;
                }
                None => return false,
                Some(false) if start.elapsed() >= self.limit => break,
                Some(false) => std::hint::spin_loop(),
            }
        }
        self.failures = (self.failures + 1).min(MAX_BACKOFF);
        self.skip = 1 << self.failures;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often looking is left out until the next time.
    fn skipped(polling: &mut Polling, found: bool) -> u32 {
        let mut skipped = 0;
        while !polling.is_due() {
            skipped += 1;
        }
        assert_eq!(polling.poll(|| Some(found)), found);
        skipped
    }

    #[test]
    fn looks_until_there_is_something() {
        let mut polling = Polling::new(Duration::from_secs(1000));
        for rounds in [1, 2, 100] {
            let mut left = rounds;
            assert!(polling.poll(|| {
                left -= 1;
                Some(left == 0)
            }));
            assert_eq!(left, 0);
        }
        assert!(!polling.poll(|| None));
    }

    #[test]
    fn in_vain_doubles_the_pause_up_to_a_limit() {
        let mut polling = Polling::new(Duration::from_nanos(1));
        for pause in [0, 2, 4, 8, 16, 32, 64, 64] {
            assert_eq!(skipped(&mut polling, false), pause);
        }
        assert_eq!(skipped(&mut polling, true), 64);
        assert_eq!(skipped(&mut polling, false), 0);
        assert_eq!(skipped(&mut polling, true), 2);
    }

    #[test]
    fn without_a_limit_nobody_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        assert!((0..100).all(|_| !polling.is_due()));
    }
}
