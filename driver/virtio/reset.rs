// SPDX-License-Identifier: GPL-2.0

//! Stopping a device for good, whatever it does.
//!
//! Memory that a device knows of must not be given back before the device has
//! stopped to use it. [`Quiesced`] is the proof that it has, which everything asks for
//! that gives such memory back. There are two ways to it: a reset that the device
//! confirms (2.1.2), and where that does not come, taking away its right to do DMA. A device
//! that goes on all the same is [`Unstoppable`]; then what it has must be left to it.

use kernel::{
    prelude::*,
    time::Delta, //
};

/// How often a device is asked whether its reset is complete.
const POLLS: u32 = 1000;

/// How long to wait before it is asked again.
const PAUSE: Delta = Delta::from_millis(1);

/// The device is not running: it touches no memory until it is started. Each start uses
/// one up, see [`Transport::start`].
///
/// [`Transport::start`]: super::transport::Transport::start
#[must_use]
#[derive(Debug)]
pub(crate) struct Quiesced(());

/// The device neither comes out of reset nor gives its right to do DMA up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unstoppable;

/// What is needed to stop a device.
pub(super) trait Stop {
    /// Asks the device to reset itself. An error where it cannot be asked.
    fn begin_reset(&self) -> Result;

    /// Whether it has done so, or has gone from the bus.
    fn is_reset(&self) -> Result<bool>;

    /// Waits. Sleeps.
    fn pause(&self, time: Delta);

    /// Takes the right to do DMA away. Returns whether that is certain.
    fn disable_bus_mastering(&self) -> bool;
}

/// Which way a device was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It has reset itself.
    Reset,
    /// It has lost the right to do DMA.
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

/// Has a device reset itself, and returns whether it says so in time. Sleeps.
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

    /// A device that comes out of reset after so many questions, if at all, and listens to
    /// its command register or not.
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
