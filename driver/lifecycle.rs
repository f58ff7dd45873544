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
//!  any of them ---- unbind, shutdown ----> removed
//! ```
//!
//! | state | new requests | in flight | maps of device memory |
//! |---|---|---|---|
//! | in service | go to the device | the device has them | exist |
//! | asleep | wait | wait, and go to the device again | exist, but no process runs |
//! | being reset | wait | end with `EIO` | removed (`SIGBUS`); new ones get `ENODEV` |
//! | out of service | `EIO` | ended with `EIO` | removed; new ones get `ENODEV` |
//! | removed | `ENODEV` | ended with `ENODEV` | removed |
//!
//! [`Hardware::life`] is locked throughout each of these changes, and no change waits for a process
//! of user space: [`crate::mappable`] does the work that depends on processes.

use crate::{
    abstractions::{
        pci::revocable::Guard,
        ratelimit,
        task::work::Tick, //
    },
    device::Device,
    hardware::{
        DownReason,
        Hardware,
        Life, //
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
    sync::ArcBorrow,
    time::{
        msecs_to_jiffies,
        Jiffies, //
    }, //
};

/// Greatest number of times that the size of the device memory is taken from the configuration after
/// an interrupt, while it changes.
const SIZE_READS: u32 = 8;

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
                // Earlier reports concern the device before this start. The device reports a size
                // only after it.
                hardware.recovery().restarted();
                shrunk = self.set_capacity(device, capacity);
            })
            .inspect_err(|_| {
                self.end_locked(hardware, life, DownReason::OutOfService, EIO);
            })?;
        self.mappable().set_ready(started.mapped);
        // Maps may exist that were made before the machine slept, or during the reset.
        if shrunk || !started.mapped {
            self.mappable().enforce(hardware);
        }
        self.log()
            .record(uapi::EVENT_STARTED, [started.capacity, 0]);
        Ok(())
    }

    /// Takes a broken device out of service until it is reset: its maps are removed, and requests
    /// end with `EIO`. Sleeps.
    fn take_out_of_service(&self, hardware: &Guard<'_, Hardware>) {
        let mut life = hardware.life().lock();
        // The device may have been reset meanwhile.
        if hardware.is_broken() && matches!(*life, Life::Running) {
            self.end_locked(hardware, &mut life, DownReason::OutOfService, EIO);
        }
    }

    /// Ends all requests and maps for good: the device is about to be removed, or the system is being
    /// shut down. Sleeps.
    pub(crate) fn remove(&self) {
        if let Ok(hardware) = self.hardware() {
            let mut life = hardware.life().lock();
            self.end_locked(&hardware, &mut life, DownReason::Removed, ENODEV);
        }
    }

    /// Fails requests with `error` from now on, removes maps, and resets the device if it runs.
    /// `reason` becomes the reason why it is down.
    fn end_locked(
        &self,
        hardware: &Guard<'_, Hardware>,
        life: &mut Life,
        reason: DownReason,
        error: Error,
    ) {
        for queue in hardware.request_queues() {
            queue.stop(error);
        }
        // Before the reset: after it a store would be lost silently.
        self.remove_maps(hardware);
        hardware.halt(hardware.device(), life, reason, Unfinished::Fail(error));
        hardware.fail_waiting(hardware.device(), life, error);
        if let Life::Down(_, current) = life {
            *current = reason;
        }
        // CAST: An errno is negative.
        let errno = error.to_errno().unsigned_abs();
        self.log()
            .record(uapi::EVENT_STOPPED, [u64::from(errno), 0]);
    }

    /// Removes the maps of device memory: an access gets `SIGBUS`, and a new map `ENODEV`, until
    /// the memory is behind the aperture again. Maps of counters, event log and used rings stay.
    /// Sleeps, but waits for no process.
    fn remove_maps(&self, hardware: &Hardware) {
        self.mappable().set_ready(false);
        self.mappable().enforce(hardware);
    }

    /// Resets the device and puts it into service again, whether it is in service or not, at the
    /// request of an administrator. Requests in flight end with `EIO`, new requests wait for the
    /// end of the reset. Sleeps.
    ///
    /// `EIO` or `ETIMEDOUT` if the device does not start again; then it is out of service. `EBUSY`
    /// while the machine goes to sleep.
    pub(crate) fn reset(&self) -> Result {
        let hardware = self.hardware()?;
        let mut life = hardware.life().lock();
        match &*life {
            Life::Running | Life::Down(_, DownReason::OutOfService) => {}
            Life::Down(_, DownReason::Removed) => return Err(ENODEV),
            Life::Down(..) => return Err(EBUSY),
            Life::Unstoppable => return Err(EIO),
        }
        self.reset_locked(&hardware, &mut life, uapi::RESET_BY_ADMINISTRATOR)
    }

    fn reset_locked(&self, hardware: &Guard<'_, Hardware>, life: &mut Life, reason: u64) -> Result {
        for queue in hardware.request_queues() {
            queue.freeze();
        }
        self.remove_maps(hardware);
        let device = hardware.device();
        hardware.halt(
            device,
            life,
            DownReason::OutOfService,
            Unfinished::Fail(EIO),
        );
        self.log().record(uapi::EVENT_RESET, [reason, 0]);
        self.start_locked(hardware, life)?;
        dev_info!(
            device,
            "the device has been reset and is in service again\n"
        );
        Ok(())
    }

    /// Resets a device that has had a request for too long. Does nothing to a device that is out of
    /// service. Sleeps.
    fn reset_if_stuck(&self, hardware: &Guard<'_, Hardware>) {
        let mut life = hardware.life().lock();
        if !matches!(*life, Life::Running) {
            return;
        }
        // The device may have been reset meanwhile, or have completed requests.
        let limit = self.timeout().clock().limit;
        let stuck =
            limit.is_some_and(|limit| hardware.request_queues().any(|queue| queue.is_stuck(limit)));
        if !stuck {
            return;
        }
        dev_err!(
            hardware.device(),
            "the device has not answered a request in time: it is reset\n"
        );
        // A failure was logged.
        let _ = self.reset_locked(hardware, &mut life, uapi::RESET_BY_TIMEOUT);
    }

    /// Takes the size of the device memory from the configuration, as after an event that names it.
    /// Sleeps.
    fn read_configuration(&self, hardware: &Guard<'_, Hardware>) {
        let life = hardware.life().lock();
        // A start takes the size from the configuration, too.
        if !matches!(*life, Life::Running) {
            return;
        }
        let device = hardware.device();
        // Again after each change. A further change is announced by a further interrupt. An event
        // that comes meanwhile may have a later size, which an earlier one must not replace even
        // for a moment: maps would be gone for good.
        for _ in 0..SIZE_READS {
            let before = self.capacity();
            let capacity = match hardware.read_capacity(device) {
                Ok(capacity) => capacity,
                Err(error) => {
                    if ratelimit::allows() {
                        dev_err!(
                            device,
                            "the device has changed its configuration to one that cannot be used \
                             without a reset: {:?}\n",
                            error
                        );
                    }
                    return;
                }
            };
            // CAST: The capacity of a configuration was checked to fit.
            if capacity as i64 == before {
                return;
            }
            if let Some(true) = self.replace_capacity(device, before, capacity) {
                self.mappable().enforce(hardware);
            }
        }
    }

    /// Suspends the device: requests in flight complete within a limited time, or wait like new
    /// requests. The device does nothing afterwards. Sleeps.
    pub(crate) fn suspend(&self) -> Result {
        let hardware = self.hardware()?;
        let device = hardware.device();
        let mut life = hardware.life().lock();
        if !matches!(*life, Life::Running) {
            return Ok(());
        }
        hardware.drain(device);
        hardware.halt(device, &mut life, DownReason::Asleep, Unfinished::Resubmit);
        match *life {
            Life::Down(..) => {
                self.log().record(uapi::EVENT_SUSPENDED, [0, 0]);
                Ok(())
            }
            _ => {
                self.remove_maps(&hardware);
                Err(EIO)
            }
        }
    }

    /// Resumes a device after [`Self::suspend`]. Its maps show the device memory again. Sleeps.
    ///
    /// After an error the device is out of service.
    pub(crate) fn resume(&self) -> Result {
        let hardware = self.hardware()?;
        let mut life = hardware.life().lock();
        if !matches!(*life, Life::Down(_, DownReason::Asleep)) {
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
        if causes.reconfigured {
            self.read_configuration(&hardware);
        }
        if causes.shrunk {
            self.mappable().enforce(&hardware);
        }
        for queue in hardware.request_queues() {
            // The entries that exceeded the budget of an interrupt.
            queue.reap();
        }
    }
}

impl Tick for Device {
    fn tick(this: ArcBorrow<'_, Self>) {
        let Ok(hardware) = this.hardware() else {
            return;
        };
        let (clock, has_changed) = this.timeout().tick();
        let mut stuck = false;
        for queue in hardware.request_queues() {
            if has_changed {
                queue.restart_clock();
            }
            let aged = queue.age(clock.limit, clock.lost);
            stuck |= aged.stuck;
            if aged.lost_interrupt && ratelimit::allows() {
                dev_warn!(
                    hardware.device(),
                    "the device has sent no interrupt for requests of queue {} that it has \
                     completed: they were found by polling\n",
                    queue.index()
                );
            }
        }
        // Events have no request that would wait.
        this.handle_events(&hardware);
        if stuck {
            hardware.recovery().stuck();
        }
        // An interrupt that also concerns I/O queues does not show that the configuration has
        // changed.
        // The status of a line tells.
        let plan = hardware.plan();
        if plan.is_single() && !plan.is_line() && hardware.has_new_config() {
            hardware.recovery().reconfigured();
        }
    }

    fn period(&self) -> Jiffies {
        msecs_to_jiffies(self.timeout().clock().period_ms)
    }
}
