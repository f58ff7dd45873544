// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Exponential back-off for what does not always pay.

/// Binary logarithm of the greatest number of times in a row that are skipped.
const MAX_EXPONENT: u32 = 6;

/// Number of consecutive misses that are tolerated: the other side may have been delayed,
/// and a skipped time would cost more.
const TOLERATED: u32 = 2;

/// How something has gone of late.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Number of times still to skip.
    skip: u32,
    /// Number of consecutive misses, up to [`TOLERATED`] and [`MAX_EXPONENT`].
    misses: u32,
}

impl Backoff {
    /// Whether to do it this time. To be asked once for each.
    pub(crate) const fn should_try(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    /// It was worthwhile this time.
    pub(crate) const fn hit(&mut self) {
        self.misses = 0;
    }

    /// It was not. After more than [`TOLERATED`] misses in a row it is skipped 2, 4, and so
    /// on up to 64 times.
    pub(crate) fn miss(&mut self) {
        self.misses = (self.misses + 1).min(TOLERATED + MAX_EXPONENT);
        if let Some(exponent) = self.misses.checked_sub(TOLERATED + 1) {
            self.skip = 2 << exponent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is skipped until the next time.
    fn skipped(backoff: &mut Backoff, hit: bool) -> u32 {
        let mut skipped = 0;
        while !backoff.should_try() {
            skipped += 1;
        }
        match hit {
            true => backoff.hit(),
            false => backoff.miss(),
        }
        skipped
    }

    #[test]
    fn misses_double_the_pause_up_to_a_limit() {
        let mut backoff = Backoff::default();
        for pause in [0, 0, 0, 2, 4, 8, 16, 32, 64, 64] {
            assert_eq!(skipped(&mut backoff, false), pause);
        }
        assert_eq!(skipped(&mut backoff, true), 64);
        for pause in [0, 0, 0, 2] {
            assert_eq!(skipped(&mut backoff, false), pause);
        }
    }
}
