// SPDX-License-Identifier: GPL-2.0

//! Stopping a device for good, whatever it does.
//!
//! The driver must not free memory that a device knows before the device has stopped accessing it.
//! [`Quiesced`] is the proof that it has, and every function that frees such memory requires it.
//! There are two ways to get it: a reset that the device confirms (2.1.2); without that, disabling
//! bus mastering, its right to do DMA. A device that continues nevertheless is [`Unstoppable`];
//! then the driver leaks the memory that the device knows.

use kernel::{
    prelude::*,
    time::Delta, //
};

/// Greatest number of reads that check whether a reset is complete.
const POLLS: u32 = 1000;

/// Time between two such reads.
const PAUSE: Delta = Delta::from_millis(1);

/// Proof that the device does not run: it accesses no memory until it is started. Each start
/// consumes one proof, see [`Transport::start`].
///
/// [`Transport::start`]: super::transport::Transport::start
#[must_use]
#[derive(Debug)]
pub(crate) struct Quiesced(());

/// The device completes no reset, and bus mastering cannot be disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unstoppable;

/// The operations that stop a device.
pub(super) trait Stop {
    /// Requests a reset of the device. An error if its register cannot be written.
    fn begin_reset(&self) -> Result;

    /// Whether the device has completed the reset, or was removed from the bus.
    fn is_reset(&self) -> Result<bool>;

    /// Waits. Sleeps.
    fn pause(&self, time: Delta);

    /// Disables bus mastering. Returns whether the device confirms it.
    fn disable_bus_mastering(&self) -> bool;
}

/// The way in which a device was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The device has completed a reset.
    Reset,
    /// Bus mastering is disabled.
    BusMastering,
}

/// Stops a device. Sleeps.
pub(super) fn quiesce(device: &impl Stop) -> Result<(Quiesced, Way), Unstoppable> {
    if reset(device) {
        return Ok((Quiesced(()), Way::Reset));
    }
    if device.disable_bus_mastering() {
        return Ok((Quiesced(()), Way::BusMastering));
    }
    Err(Unstoppable)
}

/// Resets a device, and returns whether it confirms that in time. Sleeps.
pub(super) fn reset(device: &impl Stop) -> bool {
    if device.begin_reset().is_err() {
        return false;
    }
    for _ in 0..POLLS {
        match device.is_reset() {
            Ok(true) => return true,
            Ok(false) => device.pause(PAUSE),
            Err(_) => return false,
        }
    }
    false
}

#[kernel::macros::kunit_tests(ringbar_reset)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// A device that completes its reset after this number of reads, if at all, and obeys its
    /// command register or not.
    struct Fake {
        polls: u32,
        obeys: bool,
        registers: bool,
        asked: Cell<u32>,
        masters: Cell<bool>,
    }

    impl Fake {
        fn new(polls: u32, obeys: bool) -> Self {
            Self {
                polls,
                obeys,
                registers: true,
                asked: Cell::new(0),
                masters: Cell::new(true),
            }
        }
    }

    impl Stop for Fake {
        fn begin_reset(&self) -> Result {
            self.registers.then_some(()).ok_or(ENXIO)
        }

        fn is_reset(&self) -> Result<bool> {
            self.asked.set(self.asked.get() + 1);
            Ok(self.asked.get() > self.polls)
        }

        fn pause(&self, time: Delta) {
            assert!(!time.is_zero());
        }

        fn disable_bus_mastering(&self) -> bool {
            self.masters.set(!self.obeys);
            self.obeys
        }
    }

    fn way(device: &Fake) -> Result<Way, Unstoppable> {
        quiesce(device).map(|(_, way)| way)
    }

    #[test]
    fn dr3_reset_that_comes_is_enough() {
        for polls in [0, 1, POLLS - 1] {
            let device = Fake::new(polls, true);
            assert_eq!(way(&device), Ok(Way::Reset));
            assert!(device.masters.get());
        }
    }

    #[test]
    fn dr3_without_reset_there_is_no_dma() {
        for polls in [POLLS, u32::MAX] {
            let device = Fake::new(polls, true);
            assert_eq!(way(&device), Ok(Way::BusMastering));
            assert!(!device.masters.get());
            assert_eq!(device.asked.get(), POLLS);
        }
    }

    #[test]
    fn dr3_device_that_does_not_stop_is_no_proof() {
        assert_eq!(way(&Fake::new(u32::MAX, false)), Err(Unstoppable));
    }

    #[test]
    fn dr3_registers_that_cannot_be_reached_are_no_proof() {
        for obeys in [true, false] {
            let mut device = Fake::new(0, obeys);
            device.registers = false;
            let expected = if obeys {
                Ok(Way::BusMastering)
            } else {
                Err(Unstoppable)
            };
            assert_eq!(way(&device), expected);
            assert_eq!(device.asked.get(), 0);
        }
    }
}
