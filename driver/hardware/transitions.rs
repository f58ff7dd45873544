// SPDX-License-Identifier: GPL-2.0

//! Start, drain and halt of the device; and its end.

use super::{
    life::{
        DownReason,
        Life,
        Started, //
    },
    setup::{
        REQUIRED,
        WANTED, //
    },
    Hardware, //
};
use crate::{
    abstractions::pci::revocable::Revoked,
    layout::{
        DeviceConfig,
        Opcode,
        RequestHeader, //
    },
    queue::{
        lifecycle::Unfinished,
        state::QueueRef, //
    },
    virtio::reset::Quiesced, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// Time that the first command may take, in milliseconds: the device's process may be slow to
/// start, but after this time it never completes the command.
const HANDSHAKE_TIMEOUT_MS: u32 = 20_000;

/// Time to wait for requests in flight before the machine sleeps. The rest is submitted again
/// afterwards.
const DRAIN_LIMIT: Delta = Delta::from_secs(10);

/// Time between two checks whether requests are still in flight.
const DRAIN_PAUSE: Delta = Delta::from_millis(1);

impl Hardware {
    /// Starts a device that is down, sets it up first if it is not new, and requests that its
    /// memory is mapped behind the aperture; without the aperture there are no maps, but there is
    /// DMA. Waiting requests go to the device. Sleeps. The interrupt handler must be in place.
    /// Calls `prepared` with the size of the device memory when nothing of the earlier run is left:
    /// the rings are empty, and the device does not run yet.
    ///
    /// `ETIMEDOUT` if the device does not complete the command for the aperture, `EIO` if the
    /// device is not the same as before. After an error the device may run nevertheless, and has to
    /// be halted.
    pub(crate) fn start(
        &self,
        device: &pci::Device<Bound>,
        life: &mut Life,
        prepared: impl FnOnce(u64),
    ) -> Result<Started> {
        let (quiesced, reason) = match core::mem::replace(life, Life::Running) {
            Life::Down(quiesced, reason) => (quiesced, reason),
            other => {
                *life = other;
                return Err(EIO);
            }
        };
        let config = match reason {
            DownReason::New => self.config,
            DownReason::Removed => {
                *life = Life::Down(quiesced, reason);
                return Err(ENODEV);
            }
            DownReason::Asleep | DownReason::OutOfService => {
                match self.set_up_again(device, &quiesced) {
                    Ok(config) => config,
                    Err(error) => {
                        *life = Life::Down(quiesced, reason);
                        return Err(error);
                    }
                }
            }
        };
        prepared(config.capacity());
        self.transport.start(device, quiesced)?;
        self.events.start(&self.transport, device)?;
        self.control(device).thaw();
        let mapped = self.map_aperture(device, config.aperture_bytes())?;
        for queue in self.queues(device) {
            queue.thaw();
        }
        Ok(Started {
            mapped,
            capacity: config.capacity(),
        })
    }

    /// Sets up a device that was reset, as [`Self::new`] has done, and checks that it is still the
    /// same. Returns its configuration, which may have another size.
    fn set_up_again(
        &self,
        device: &pci::Device<Bound>,
        quiesced: &Quiesced,
    ) -> Result<DeviceConfig> {
        let features = self
            .transport
            .negotiate(device, quiesced, REQUIRED, WANTED)?;
        let config = DeviceConfig::parse(&self.transport.device_config(device)?)
            .ok()
            .filter(|config| features == self.features && self.is_same_but_for_size(config));
        let Some(config) = config else {
            dev_err!(
                device,
                "after the reset the device is another one: it has other features or another \
                 configuration. Unbind and bind the driver to use it\n"
            );
            self.transport.fail(device);
            return Err(EIO);
        };
        if !self
            .transport
            .set_config_vector(device, self.plan.configuration())?
        {
            dev_err!(
                device,
                "the device refuses the interrupts that it had before\n"
            );
            self.transport.fail(device);
            return Err(EIO);
        }
        self.events.restart(&self.transport, device, quiesced)?;
        for queue in self.queues(device) {
            queue.restart(quiesced)?;
        }
        Ok(config)
    }

    /// Reads the configuration of the running device, and returns the size of the device memory.
    /// Sleeps.
    ///
    /// `EIO` if anything else in it has changed.
    pub(crate) fn read_capacity(&self, device: &pci::Device<Bound>) -> Result<u64> {
        DeviceConfig::parse(&self.transport.device_config(device)?)
            .ok()
            .filter(|config| self.is_same_but_for_size(config))
            .map(|config| config.capacity())
            .ok_or(EIO)
    }

    fn is_same_but_for_size(&self, config: &DeviceConfig) -> bool {
        config.resized(self.config.capacity(), self.config.aperture_bytes()) == Ok(self.config)
    }

    /// Requests that the device memory is mapped behind the aperture, and checks that the mapping
    /// has the expected size; see [`Self::start`].
    fn map_aperture(&self, device: &pci::Device<Bound>, wanted: u64) -> Result<bool> {
        // The aperture cannot show more than the BAR had room for at probe.
        let wanted = wanted.min(self.config.aperture_bytes());
        let control = self.control(device);
        let header = RequestHeader::command(Opcode::MapAperture, 0, 0, 0);
        let command = control.try_acquire()?.prepare_command(header);
        let timeout = msecs_to_jiffies(HANDSHAKE_TIMEOUT_MS);
        let mapped = command.execute(Some(timeout));
        match mapped {
            Ok(bytes) if bytes >= wanted => Ok(self.aperture.is_some()),
            Ok(bytes) => {
                dev_warn!(
                    device,
                    "the device has mapped {} of {} bytes: there will be no mmap\n",
                    bytes,
                    wanted
                );
                Ok(false)
            }
            Err(error) if error == ETIMEDOUT => {
                dev_err!(
                    device,
                    "the device does not answer on its control queue. Does the virtual machine \
                     share its memory (memory-backend with share=on), and does the device's \
                     process run?\n"
                );
                Err(error)
            }
            Err(error) => {
                dev_warn!(
                    device,
                    "the device cannot map its memory ({:?}): there will be no mmap\n",
                    error
                );
                Ok(false)
            }
        }
    }

    /// Lets no caller acquire a slot, and waits for requests in flight, for at most
    /// [`DRAIN_LIMIT`]. Sleeps.
    pub(crate) fn drain(&self, device: &pci::Device<Bound>) {
        for queue in self.queues.iter() {
            queue.freeze();
        }
        let start = Instant::<Monotonic>::now();
        while !self.queues(device).all(QueueRef::is_idle) {
            if start.elapsed() >= DRAIN_LIMIT {
                dev_warn!(
                    device,
                    "not all requests have ended: they are submitted again later\n"
                );
                return;
            }
            fsleep(DRAIN_PAUSE);
        }
    }

    /// Stops a running device, by a reset, and ends requests in flight as `unfinished` says. Does
    /// nothing to a device that is down already. Sleeps.
    pub(crate) fn halt(
        &self,
        device: &pci::Device<Bound>,
        life: &mut Life,
        reason: DownReason,
        unfinished: Unfinished,
    ) {
        if !matches!(life, Life::Running) {
            return;
        }
        self.events.stop();
        for queue in self.queues.iter() {
            queue.detach();
        }
        match self.transport.quiesce(device) {
            Ok(quiesced) => {
                for queue in self.queues(device) {
                    queue.reclaim(&quiesced, unfinished);
                }
                *life = Life::Down(quiesced, reason);
            }
            Err(_) => {
                for queue in self.queues(device) {
                    queue.stop(EIO);
                    queue.abandon(EIO);
                }
                *life = Life::Unstoppable;
            }
        }
    }

    /// Fails with `error` the requests that were kept for a device that is down. Sleeps.
    pub(crate) fn fail_waiting(&self, device: &pci::Device<Bound>, life: &Life, error: Error) {
        if let Life::Down(quiesced, _) = life {
            for queue in self.queues(device) {
                queue.stop(error);
                queue.reclaim(quiesced, Unfinished::Fail(error));
            }
        }
    }
}

impl Revoked for Hardware {
    /// Frees everything except the memory that a device that cannot be stopped may use.
    fn revoked(self, device: &pci::Device<Bound>) {
        {
            let mut life = self.life.lock();
            // In most cases the queues are stopped already.
            for queue in self.queues.iter() {
                queue.stop(ENODEV);
            }
            self.halt(
                device,
                &mut life,
                DownReason::Removed,
                Unfinished::Fail(ENODEV),
            );
        }
        let Self {
            work,
            map_work,
            life,
            queues,
            events,
            recovery,
            ..
        } = self;
        recovery.detach();
        // Items that are still queued find the hardware revoked.
        drop(work);
        // This may have to wait for a process, like the revocation before.
        drop(map_work);
        if matches!(*life.lock(), Life::Unstoppable) {
            core::mem::forget((queues, events));
        }
    }
}
