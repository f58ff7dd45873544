// SPDX-License-Identifier: GPL-2.0

//! One Ringbar device as files, the interrupt handler and work items see it.
//!
//! It is reference-counted and may outlive the hardware, which is revoked at unbind:
//! whoever wants it asks for a [`Guard`], and after unbind gets none.

use crate::{
    abstractions::{
        fs::{
            plug,
            poll::{
                Pollers,
                Readiness, //
            }, //
        },
        mm::{
            address_space::AddressSpace,
            vma::IoMemory, //
        },
        pci::{
            irq,
            revocable::{
                Guard,
                RevokeOnDrop,
                SrcuRevocable, //
            }, //
        },
        ratelimit, //
    },
    event_log::EventLog,
    events::Received,
    hardware::Hardware,
    layout::Event,
    mappable::Mappable,
    queue::{
        completion::{
            Budget,
            Reaped, //
        },
        polling::WaitStrategy,
        slot::Limits,
        state::Queue, //
    },
    stats::Stats,
    uapi, //
};
use kernel::{
    device::Bound,
    impl_has_work,
    new_work,
    pci,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Release, //
        }, //
        Arc,
        ArcBorrow,
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// One device.
#[pin_data]
pub(crate) struct Device {
    hardware: Arc<SrcuRevocable<Hardware>>,
    maps: Arc<AddressSpace>,
    stats: Arc<Stats>,
    pollers: Arc<Pollers>,
    log: EventLog,
    /// What a request can carry: known without the hardware, which nobody must hold while
    /// pages are faulted in.
    limits: Limits,
    mappable: Arc<Mappable>,
    /// Whether there was a message that the device broke a queue, since it was started last.
    pub(crate) broken: Atomic<bool>,
    /// Whether the work item has to see whether the device is stuck.
    pub(crate) stuck: Atomic<bool>,
    /// Whether the work item has to take away maps beyond the end of the memory.
    shrunk: Atomic<bool>,
    #[pin]
    work: Work<Device>,
}

impl_has_work! {
    impl HasWork<Self> for Device { self.work }
}

impl Device {
    /// Makes the hardware accessible until unbind, and returns the right to revoke it. May sleep.
    pub(crate) fn new(
        device: &pci::Device<Bound>,
        hardware: Hardware,
        stats: Arc<Stats>,
    ) -> Result<(Arc<Self>, RevokeOnDrop<Hardware>)> {
        let maps = Arc::pin_init(AddressSpace::new(), GFP_KERNEL)?;
        let log = EventLog::new()?;
        // CAST: The configuration was checked to fit.
        let capacity = hardware.config().capacity() as i64;
        let pollers = hardware.pollers().clone();
        let limits = *hardware.limits();
        let aperture = hardware.aperture().map_or(0, IoMemory::pages);
        let (hardware, revoke) = SrcuRevocable::new(device, hardware, maps.clone())?;
        let mappable = Mappable::new(hardware.clone(), maps.clone(), aperture, capacity)?;
        let this = Arc::pin_init(
            pin_init!(Self {
                hardware,
                maps,
                stats,
                pollers,
                log,
                limits,
                mappable,
                broken: Atomic::new(false),
                stuck: Atomic::new(false),
                shrunk: Atomic::new(false),
                work <- new_work!("ringbar"),
            }),
            GFP_KERNEL,
        )?;
        Ok((this, revoke))
    }

    /// The hardware, `ENODEV` after unbind. Any context.
    #[inline]
    pub(crate) fn hardware(&self) -> Result<Guard<'_, Hardware>> {
        self.hardware.try_access().ok_or(ENODEV)
    }

    /// What a request can carry, `ENODEV` after unbind. Any context.
    #[inline]
    pub(crate) fn limits(&self) -> Result<&Limits> {
        if self.hardware.is_accessible() {
            Ok(&self.limits)
        } else {
            Err(ENODEV)
        }
    }

    /// Where the maps of this device's files belong.
    pub(crate) fn maps(&self) -> &Arc<AddressSpace> {
        &self.maps
    }

    /// The counters.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The log of what happened to the device.
    pub(crate) fn log(&self) -> &EventLog {
        &self.log
    }

    /// Those who wait until the device is ready.
    pub(crate) fn pollers(&self) -> &Pollers {
        &self.pollers
    }

    /// Whether a request would find room. Any context.
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

    /// How much of the device memory may be mapped.
    pub(crate) fn mappable(&self) -> &Arc<Mappable> {
        &self.mappable
    }

    /// Whether the current task submits a batch: then its end is where the hardware
    /// is notified of what [`Queue::defer_kick`] was called for. Task context;
    /// does not sleep.
    pub(crate) fn in_batch(this: ArcBorrow<'_, Self>) -> bool {
        plug::defer(this)
    }

    /// Notifies the hardware of what was submitted to `queue`, and does what `effort`
    /// says that pays. Task context; does not sleep.
    pub(crate) fn notify(
        this: ArcBorrow<'_, Self>,
        hardware: &Guard<'_, Hardware>,
        queue: &Queue,
        effort: WaitStrategy,
    ) {
        let (transport, device) = (&hardware.transport, hardware.device());
        let reaped = match queue.poll_limit(effort, false, hardware.poll_limit()) {
            Some(limit) => queue.notify_and_poll(transport, device, limit),
            None => queue.notify_and_reap(transport, device),
        };
        Self::note(this, hardware, queue, &reaped);
    }

    /// Looks through all queues. Any context.
    fn service(this: ArcBorrow<'_, Self>) {
        let Ok(hardware) = this.hardware() else {
            return;
        };
        let device = hardware.device();
        let mut work = false;
        let mut budget = Budget::for_interrupt();
        for queue in hardware.queues() {
            let reaped = queue.reap_after_interrupt(device, &mut budget);
            Self::note(this, &hardware, queue, &reaped);
        }
        while let Some(received) = hardware.events.receive(&hardware.transport, device) {
            work |= this.handle_event(device, &received);
            if matches!(received, Received::Broken) {
                break;
            }
        }
        if work {
            Self::schedule_work(this, &hardware);
        }
    }

    /// Has the work item run. Any context.
    pub(crate) fn schedule_work(this: ArcBorrow<'_, Self>, hardware: &Hardware) {
        // Already queued is as good.
        let _ = hardware.work().enqueue(Arc::from(this));
    }

    /// Notes what was seen of a queue, and leaves to the work item what sleeps. Any
    /// context.
    #[inline]
    pub(crate) fn note(
        this: ArcBorrow<'_, Self>,
        hardware: &Guard<'_, Hardware>,
        queue: &Queue,
        reaped: &Reaped,
    ) {
        if reaped.more || reaped.fault.is_some() {
            Self::note_unusual(this, hardware, queue, reaped);
        }
    }

    /// As [`Self::note`], where there is something for the work item.
    #[cold]
    fn note_unusual(
        this: ArcBorrow<'_, Self>,
        hardware: &Guard<'_, Hardware>,
        queue: &Queue,
        reaped: &Reaped,
    ) {
        if let Some(fault) = reaped.fault {
            this.log
                .record(uapi::EVENT_QUEUE_BROKEN, [queue.index().into(), 0]);
            // One message for each time that it is taken out of service.
            if !this.broken.xchg(true, Full) {
                dev_err!(
                    hardware.device(),
                    "the device broke queue {}: {:?}; it is taken out of service\n",
                    queue.index(),
                    fault
                );
            }
        }
        Self::schedule_work(this, hardware);
    }

    /// Ends what the hardware has done of the polled requests. Returns whether there
    /// was any. Any context.
    pub(crate) fn poll(this: ArcBorrow<'_, Self>) -> Result<bool> {
        let hardware = this.hardware()?;
        let queue = hardware.polled_queue();
        let reaped = queue.reap(hardware.device());
        Self::note(this, &hardware, queue, &reaped);
        Ok(reaped.any)
    }

    /// Takes note of the size of the device memory. Returns whether there is something left
    /// for the work item. Any context.
    pub(crate) fn set_capacity(&self, device: &pci::Device<Bound>, capacity: u64) -> bool {
        // CAST: Configurations and events are checked to fit.
        let before = self.mappable.set_capacity(capacity as i64);
        if capacity as i64 == before {
            return false;
        }
        if ratelimit::allows() {
            dev_info!(device, "the device now has {} bytes\n", capacity);
        }
        self.log.record(uapi::EVENT_CAPACITY, [capacity, 0]);
        let shrunk = (capacity as i64) < before;
        if shrunk {
            self.shrunk.store(true, Release);
        }
        shrunk
    }

    /// Returns whether there is something left for the work item.
    fn handle_event(&self, device: &pci::Device<Bound>, received: &Received) -> bool {
        match *received {
            Received::Event(Event::QueueBroken { queue, fault }) => {
                self.log.record(uapi::EVENT_QUEUE_BROKEN, [queue.into(), 1]);
                if !self.broken.xchg(true, Full) {
                    dev_err!(
                        device,
                        "the device has given up queue {}: {:?}; it is taken out of service\n",
                        queue,
                        fault
                    );
                }
                true
            }
            Received::Event(Event::CapacityChanged { capacity }) => {
                self.set_capacity(device, capacity)
            }
            Received::Unknown(buffer) => {
                pr_warn_once!("unknown event in buffer {}\n", buffer);
                false
            }
            Received::Broken => {
                if !self.broken.xchg(true, Full) {
                    dev_err!(device, "the device broke the event queue\n");
                }
                true
            }
        }
    }
}

impl irq::Handler for Device {
    fn handle(this: ArcBorrow<'_, Self>) -> bool {
        this.stats.interrupt();
        Self::service(this);
        // With MSI-X nobody else shares the line.
        true
    }
}

impl plug::Unplug for Device {
    fn unplug(this: ArcBorrow<'_, Self>, scheduled: bool) {
        // Without hardware there is nobody to notify.
        let Ok(hardware) = this.hardware() else {
            return;
        };
        for queue in hardware.queues() {
            match queue.take_deferred_kick() {
                // A task that goes to sleep does not wait for this.
                Some(_) if scheduled => {
                    Self::notify(this, &hardware, queue, WaitStrategy::Interrupt)
                }
                Some(effort) => Self::notify(this, &hardware, queue, effort),
                None => {}
            }
        }
    }
}

impl WorkItem for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let Ok(hardware) = this.hardware() else {
            return;
        };
        if hardware.is_broken() {
            this.take_out_of_service(&hardware);
        }
        if this.stuck.xchg(false, Full) {
            this.recover(&hardware);
        }
        if this.shrunk.xchg(false, Full) {
            this.mappable.enforce(&hardware);
        }
        for queue in hardware.queues() {
            // What was more than an interrupt may do.
            let reaped = queue.reap(hardware.device());
            Self::note(this.as_arc_borrow(), &hardware, queue, &reaped);
        }
    }
}
