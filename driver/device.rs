// SPDX-License-Identifier: GPL-2.0

//! One Ringbar device, as files, the interrupt handler and work items see it.
//!
//! It is reference-counted and may outlive the hardware, which is revoked at unbind: code that
//! accesses the hardware needs a [`Guard`], and gets none after unbind.

use crate::{
    abstractions::{
        fs::{
            plug::{
                self,
                Deferral,
                DeferredKick, //
            },
            poll::{
                Pollers,
                Readiness, //
            }, //
        },
        mm::{
            address_space::AddressSpace,
            vma::IoMemory, //
        },
        pci::revocable::{
            Guard,
            RevokeOnDrop,
            SrcuRevocable, //
        },
        ratelimit, //
    },
    event_log::EventLog,
    events::Received,
    hardware::Hardware,
    layout::Event,
    mappable::Mappable,
    queue::{
        buffers::Limits,
        poll_policy::WaitStrategy,
        state::QueueRef, //
    },
    stats::Stats,
    timeout::Timeout,
    uapi, //
};
use kernel::{
    device::Bound,
    pci,
    pr_warn_once,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// One device.
pub(crate) struct Device {
    hardware: Arc<SrcuRevocable<Hardware>>,
    maps: Arc<AddressSpace>,
    stats: Arc<Stats>,
    pollers: Arc<Pollers>,
    log: Arc<EventLog>,
    /// Limits of a request: kept outside the hardware, because no [`Guard`] may be held while pages
    /// are faulted in.
    limits: Limits,
    mappable: Arc<Mappable>,
    timeout: Arc<Timeout>,
}

impl Device {
    /// Makes the hardware accessible until unbind, and returns the right to revoke it. May sleep.
    pub(crate) fn new(
        device: &pci::Device<Bound>,
        hardware: Hardware,
        stats: Arc<Stats>,
        log: Arc<EventLog>,
        timeout: Arc<Timeout>,
    ) -> Result<(Arc<Self>, RevokeOnDrop<Hardware>)> {
        let maps = Arc::pin_init(AddressSpace::new(), GFP_KERNEL)?;
        // CAST: The capacity of a configuration was checked to fit.
        let capacity = hardware.config().capacity() as i64;
        let pollers = hardware.pollers().clone();
        let limits = *hardware.limits();
        let aperture = hardware.aperture().map_or(0, IoMemory::pages);
        let (recovery, work) = (hardware.recovery().clone(), hardware.work().clone());
        let (hardware, revoke) = SrcuRevocable::new(device, hardware, maps.clone())?;
        let mappable = Mappable::new(hardware.clone(), maps.clone(), aperture, capacity)?;
        let this = Arc::new(
            Self {
                hardware,
                maps,
                stats,
                pollers,
                log,
                limits,
                mappable,
                timeout,
            },
            GFP_KERNEL,
        )?;
        recovery.attach(this.clone(), work);
        Ok((this, revoke))
    }

    /// Access to the hardware; `ENODEV` after unbind. Any context.
    #[inline]
    pub(crate) fn hardware(&self) -> Result<Guard<'_, Hardware>> {
        self.hardware.try_access().ok_or(ENODEV)
    }

    /// Limits of a request; `ENODEV` after unbind. Any context.
    #[inline]
    pub(crate) fn limits(&self) -> Result<&Limits> {
        if self.hardware.is_accessible() {
            Ok(&self.limits)
        } else {
            Err(ENODEV)
        }
    }

    /// The address space of the maps of this device's files.
    pub(crate) fn maps(&self) -> &Arc<AddressSpace> {
        &self.maps
    }

    /// The counters.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The log of the device's events.
    pub(crate) fn log(&self) -> &EventLog {
        &self.log
    }

    /// The time that a request may take.
    pub(crate) fn timeout(&self) -> &Timeout {
        &self.timeout
    }

    /// The threads that wait until the device is ready.
    pub(crate) fn pollers(&self) -> &Pollers {
        &self.pollers
    }

    /// Whether a request would find a free slot. Any context.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.hardware().and_then(|hardware| hardware.has_room()) {
            Ok(true) => Readiness::Ready,
            Ok(false) => Readiness::Busy,
            Err(_) => Readiness::Gone,
        }
    }

    /// Size of the device memory in bytes. Any context.
    pub(crate) fn capacity(&self) -> i64 {
        self.mappable.capacity()
    }

    /// Whether the device memory can be mapped.
    pub(crate) fn aperture_ready(&self) -> bool {
        self.mappable.is_ready()
    }

    /// The part of the device memory that may be mapped.
    pub(crate) fn mappable(&self) -> &Arc<Mappable> {
        &self.mappable
    }

    /// Kicks `queue` at the end of the current task's batch, or at once if there is no batch. To be
    /// called once the requests are in flight. Task context; does not sleep.
    pub(crate) fn defer_kick(
        this: ArcBorrow<'_, Self>,
        hardware: &Guard<'_, Hardware>,
        queue: QueueRef<'_>,
        strategy: WaitStrategy,
    ) {
        let kick = DeferredKick {
            queue: queue.index(),
            poll_bytes: strategy.poll_bytes(),
        };
        match plug::defer_kick(this, kick) {
            Deferral::Deferred => {}
            // The task has moved to another CPU, or the queue of its CPU was full: the earlier kick
            // is for another queue.
            Deferral::Replaced(before) => hardware.kick(before.queue, WaitStrategy::Interrupt),
            Deferral::NoBatch => queue.kick(strategy),
        }
    }

    /// Handles the events that the device has sent. Returns whether there were any. Any context.
    pub(crate) fn handle_events(&self, hardware: &Guard<'_, Hardware>) -> bool {
        let (device, recovery) = (hardware.device(), hardware.recovery());
        let mut any = false;
        while hardware.receive_event(|received| {
            any = true;
            match received {
                Received::Event(Event::QueueBroken { queue, fault }) => {
                    recovery.queue_given_up(device, queue, fault);
                }
                Received::Event(Event::CapacityChanged { capacity }) => {
                    if self.set_capacity(device, capacity) {
                        recovery.shrunk();
                    }
                }
                Received::Unknown(buffer) => pr_warn_once!("unknown event in buffer {}\n", buffer),
                Received::Broken => recovery.event_queue_broken(device),
            }
        }) {}
        any
    }

    /// Completes the polled requests that the device has completed. Returns whether there were any.
    /// Any context.
    pub(crate) fn reap_polled(&self) -> Result<bool> {
        Ok(self.hardware()?.polled_queue().reap())
    }

    /// Sets the size of the device memory. Returns whether it has become smaller: then
    /// [`Mappable::enforce`] is to be called. Any context.
    pub(crate) fn set_capacity(&self, device: &pci::Device<Bound>, capacity: u64) -> bool {
        // CAST: The capacities of configurations and events are checked to fit.
        let before = self.mappable.set_capacity(capacity as i64);
        self.capacity_changed(device, before, capacity)
    }

    /// Sets the size of the device memory if it is still `before`, as [`Self::set_capacity`] does.
    /// `None` if it is not. Any context.
    pub(crate) fn replace_capacity(
        &self,
        device: &pci::Device<Bound>,
        before: i64,
        capacity: u64,
    ) -> Option<bool> {
        self.mappable
            .replace_capacity(before, capacity as i64)
            .then(|| self.capacity_changed(device, before, capacity))
    }

    /// Reports a size. Returns whether it is smaller.
    fn capacity_changed(&self, device: &pci::Device<Bound>, before: i64, capacity: u64) -> bool {
        if capacity as i64 == before {
            return false;
        }
        if ratelimit::allows() {
            dev_info!(device, "the device now has {} bytes\n", capacity);
        }
        self.log.record(uapi::EVENT_CAPACITY, [capacity, 0]);
        (capacity as i64) < before
    }
}

impl plug::Unplug for Device {
    fn unplug(this: ArcBorrow<'_, Self>, kick: DeferredKick, scheduled: bool) {
        // Without hardware there is no device to notify.
        let Ok(hardware) = this.hardware() else {
            return;
        };
        let strategy = match kick.poll_bytes {
            // A task that goes to sleep does not wait for the requests.
            Some(bytes) if !scheduled => WaitStrategy::BusyPoll(bytes),
            _ => WaitStrategy::Interrupt,
        };
        hardware.kick(kick.queue, strategy);
    }
}
