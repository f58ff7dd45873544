// SPDX-License-Identifier: GPL-2.0

//! The life of a device: started, put to sleep, reset, taken out of service, removed.
//!
//! ```text
//!             start                    suspend
//!  (probe) ----------> in service ------------------> asleep
//!                       ^  |  ^  ^                      |
//!                reset  |  |  |  +------- resume -------+--> (fails: out of service)
//!                       |  |  +-- reset --+
//!                       |  |              |
//!                       |  +-- fault --> out of service
//!                       +-- timeout
//!
//!  any of them ---- unbind ----> removed
//! ```
//!
//! | state | new requests | in flight | maps of device memory |
//! |---|---|---|---|
//! | in service | go to the device | the device has them | there |
//! | asleep | wait | wait, and go to the device again | there; nobody runs to use them |
//! | being reset | wait | end with `EIO` | taken away (`SIGBUS`); new ones get `ENODEV` |
//! | out of service | `EIO` | ended with `EIO` | taken away; new ones get `ENODEV` |
//! | removed | `ENODEV` | ended with `ENODEV` | taken away |
//!
//! [`Hardware::life`] is locked throughout each of these changes, and nobody waits for a process of
//! user space meanwhile: what depends on that is left to [`crate::mappable`].

use crate::{
    abstractions::{
        pci::revocable::Guard,
        task::work::Tick, //
    },
    device::Device,
    hardware::{
        Hardware,
        Life,
        Why, //
    },
    queue::lifecycle::Unfinished,
    recovery::{
        Causes,
        Recover, //
    },
    uapi, //
};
use kernel::{
    prelude::*,
    sync::ArcBorrow, //
};

/// Ticks of the clock after which a request that is still in flight has taken too long. More
/// make that time more exact.
const TICKS: u8 = 8;

/// Milliseconds between two ticks where a request may take `seconds`; `None` for ever.
pub(crate) fn tick_ms(seconds: u32) -> Option<u32> {
    (seconds > 0).then(|| seconds.saturating_mul(1000) / u32::from(TICKS))
}

impl Device {
    /// Starts the device. Sleeps. The interrupt handler must be in place.
    pub(crate) fn start(&self) -> Result {
        let hardware = self.hardware()?;
        let mut life = hardware.life().lock();
        self.start_locked(&hardware, &mut life)
    }

    fn start_locked(&self, hardware: &Guard<'_, Hardware>, life: &mut Life) -> Result {
        let device = hardware.device();
        let mut shrunk = false;
        let started = hardware
            .start(device, life, |capacity| {
                // Whatever was said of it, was so before. What it says of its size comes later.
                hardware.recovery().restarted();
                shrunk = self.set_capacity(device, capacity);
            })
            .inspect_err(|_| {
                self.end_locked(hardware, life, Why::OutOfService, EIO);
            })?;
        self.mappable().set_ready(started.mapped);
        // There may be maps that outlived the sleep of the machine, or were made during the reset.
        if shrunk || !started.mapped {
            self.mappable().enforce(hardware);
        }
        self.log()
            .record(uapi::EVENT_STARTED, [started.capacity, 0]);
        Ok(())
    }

    /// Takes a device that is broken out of service until it is reset: maps are gone, and requests
    /// end with `EIO`. Sleeps.
    fn take_out_of_service(&self, hardware: &Guard<'_, Hardware>) {
        let mut life = hardware.life().lock();
        // It may have been reset meanwhile.
        if hardware.is_broken() && matches!(*life, Life::Running) {
            self.end_locked(hardware, &mut life, Why::OutOfService, EIO);
        }
    }

    /// Ends everything for good: the device is about to go. Sleeps.
    pub(crate) fn remove(&self) {
        if let Ok(hardware) = self.hardware() {
            let mut life = hardware.life().lock();
            self.end_locked(&hardware, &mut life, Why::Removed, ENODEV);
        }
    }

    /// Requests get `error` from now on, maps are taken away, the device is reset if it runs,
    /// and is down for this reason.
    fn end_locked(&self, hardware: &Guard<'_, Hardware>, life: &mut Life, why: Why, error: Error) {
        for queue in hardware.request_queues() {
            queue.stop(error);
        }
        // Before the reset: after it a store would be lost without a word.
        self.take_maps_away(hardware);
        hardware.halt(hardware.device(), life, why, Unfinished::Fail(error));
        hardware.fail_waiting(hardware.device(), life, error);
        if let Life::Down(_, reason) = life {
            *reason = why;
        }
        // CAST: An errno is negative.
        let errno = error.to_errno().unsigned_abs();
        self.log()
            .record(uapi::EVENT_STOPPED, [u64::from(errno), 0]);
    }

    /// Takes the maps of device memory away: who touches one gets `SIGBUS`, who makes one
    /// `ENODEV` until it is there again. Counters, event log and used rings stay. Sleeps, but waits
    /// for nobody.
    fn take_maps_away(&self, hardware: &Hardware) {
        self.mappable().set_ready(false);
        self.mappable().enforce(hardware);
    }

    /// Resets the device and puts it into service again, whether it is in service or not, as
    /// an administrator asks for it. What is in flight ends with `EIO`, new requests wait for
    /// the end. Sleeps.
    ///
    /// `EIO` or `ETIMEDOUT` where it does not come back; then it is out of service. `EBUSY`
    /// while the machine goes to sleep.
    pub(crate) fn reset(&self) -> Result {
        let hardware = self.hardware()?;
        let mut life = hardware.life().lock();
        match &*life {
            Life::Running | Life::Down(_, Why::OutOfService) => {}
            Life::Down(_, Why::Removed) => return Err(ENODEV),
            Life::Down(..) => return Err(EBUSY),
            Life::Unstoppable => return Err(EIO),
        }
        self.reset_locked(&hardware, &mut life, uapi::RESET_BY_ADMINISTRATOR)
    }

    fn reset_locked(&self, hardware: &Guard<'_, Hardware>, life: &mut Life, reason: u64) -> Result {
        for queue in hardware.request_queues() {
            queue.freeze();
        }
        self.take_maps_away(hardware);
        let device = hardware.device();
        hardware.halt(device, life, Why::OutOfService, Unfinished::Fail(EIO));
        self.log().record(uapi::EVENT_RESET, [reason, 0]);
        self.start_locked(hardware, life)?;
        dev_info!(
            device,
            "the device has been reset and is in service again\n"
        );
        Ok(())
    }

    /// Resets a device that has had a request for too long. Does nothing to one that is out
    /// of service. Sleeps.
    fn reset_if_stuck(&self, hardware: &Guard<'_, Hardware>) {
        let mut life = hardware.life().lock();
        // It may have been reset meanwhile, or have answered.
        let stuck = hardware.request_queues().any(|queue| queue.is_stuck(TICKS));
        if !stuck || !matches!(*life, Life::Running) {
            return;
        }
        dev_err!(
            hardware.device(),
            "the device has not answered a request in time: it is reset\n"
        );
        // Where that fails, there was a message.
        let _ = self.reset_locked(hardware, &mut life, uapi::RESET_BY_TIMEOUT);
    }

    /// Puts the device to sleep: what is in flight ends, as far as it does in time; the rest
    /// and what is new waits. The device does nothing afterwards. Sleeps.
    pub(crate) fn suspend(&self) -> Result {
        let hardware = self.hardware()?;
        let device = hardware.device();
        let mut life = hardware.life().lock();
        if !matches!(*life, Life::Running) {
            return Ok(());
        }
        hardware.drain(device);
        hardware.halt(device, &mut life, Why::Asleep, Unfinished::Resubmit);
        match *life {
            Life::Down(..) => {
                self.log().record(uapi::EVENT_SUSPENDED, [0, 0]);
                Ok(())
            }
            _ => {
                self.take_maps_away(&hardware);
                Err(EIO)
            }
        }
    }

    /// Wakes a device up that [`Self::suspend`] has put to sleep. Maps that were there show
    /// the device memory again. Sleeps.
    ///
    /// On an error the device is out of service.
    pub(crate) fn resume(&self) -> Result {
        let hardware = self.hardware()?;
        let mut life = hardware.life().lock();
        if !matches!(*life, Life::Down(_, Why::Asleep)) {
            return Ok(());
        }
        self.start_locked(&hardware, &mut life)
    }
}

impl Recover for Device {
    fn recover(&self, causes: Causes) {
        let Ok(hardware) = self.hardware() else {
            return;
        };
        if hardware.is_broken() {
            self.take_out_of_service(&hardware);
        }
        if causes.stuck {
            self.reset_if_stuck(&hardware);
        }
        if causes.shrunk {
            self.mappable().enforce(&hardware);
        }
        for queue in hardware.request_queues() {
            // What was more than an interrupt may do.
            queue.reap();
        }
    }
}

impl Tick for Device {
    fn tick(this: ArcBorrow<'_, Self>) {
        let Ok(hardware) = this.hardware() else {
            return;
        };
        let mut stuck = false;
        for queue in hardware.request_queues() {
            stuck |= queue.age(TICKS);
        }
        if stuck {
            hardware.recovery().stuck();
        }
    }
}
