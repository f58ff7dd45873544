// SPDX-License-Identifier: GPL-2.0

//! The interrupt status of a device whose interrupts are a line (4.1.4.5).

/// The bit of a configuration change.
const CONFIGURATION: u8 = 1 << 1;

/// The answer of a device that was removed from the bus.
const GONE: u8 = 0xff;

/// The reasons of an interrupt on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raised {
    /// Whether the configuration has changed. If not, a queue has used entries.
    pub(crate) configuration: bool,
}

impl Raised {
    /// The reasons in an interrupt status; `None` if the device has not raised the interrupt.
    #[inline]
    pub(super) fn parse(status: u8) -> Option<Self> {
        match status {
            0 | GONE => None,
            _ => Some(Self {
                configuration: status & CONFIGURATION != 0,
            }),
        }
    }
}

#[kernel::macros::kunit_tests(ringbar_isr)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_whether_and_why_the_line_was_raised() {
        let configuration = |status| Raised::parse(status).map(|raised| raised.configuration);
        assert_eq!(configuration(0), None);
        assert_eq!(configuration(1), Some(false));
        assert_eq!(configuration(2), Some(true));
        assert_eq!(configuration(3), Some(true));
        assert_eq!(configuration(0xff), None);
    }
}
