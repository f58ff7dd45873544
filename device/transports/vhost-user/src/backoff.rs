// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Leaving out what did not pay, for longer each time in a row.

/// The binary logarithm of the most times that something is left out.
const MAX_FAILURES: u32 = 6;

/// So often in a row nothing follows from it that something did not pay: the other side
/// was held up. What would be left out then costs more.
const FORGIVEN: u32 = 2;

/// How something has paid of late.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Times to come that are left out.
    skip: u32,
    /// How often in a row it did not pay, up to
    /// [`FORGIVEN`] and [`MAX_FAILURES`].
    failures: u32,
}

impl Backoff {
    /// Whether to do it this time. To be asked once for each.
    pub(crate) const fn is_due(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    /// Whether it paid this time. If not, and more than [`FORGIVEN`] times in a row, it is
    /// left out 2, 4, and so on up to 64 times.
    pub(crate) fn learn(&mut self, paid: bool) {
        if paid {
            self.failures = 0;
        } else {
            self.failures = (self.failures + 1).min(FORGIVEN + MAX_FAILURES);
            if let Some(exponent) = self.failures.checked_sub(FORGIVEN + 1) {
                self.skip = 2 << exponent;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is left out until the next time.
    fn skipped(backoff: &mut Backoff, paid: bool) -> u32 {
        let mut skipped = 0;
        while !backoff.is_due() {
            skipped += 1;
        }
        backoff.learn(paid);
        skipped
    }

    #[test]
    fn in_vain_doubles_the_pause_up_to_a_limit() {
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
