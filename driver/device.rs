// SPDX-License-Identifier: GPL-2.0

//! One Ringbar device as files, the interrupt handler and work items see it.
//!
//! It is reference-counted and may outlive the hardware, which is behind a gate:
//! whoever wants it enters the gate, and after unbind gets nothing.

use crate::{
    abstractions::{
        address_space::AddressSpace,
        gate::{
            Entered,
            Gate, //
        },
        irq,
        plug,
        poll::{
            Pollers,
            Readiness, //
        },
        work, //
    },
    event_log::EventLog,
    file::map,
    hardware::Hardware,
    layout::Event,
    request::{
        completion::{
            Budget,
            Reaped, //
        },
        event::Received,
        polling::Effort,
        queue::Queue,
        slot::Limits, //
    },
    stats::Stats,
    uapi, //
};
use kernel::{
    device::Bound,
    impl_has_work,
    new_mutex,
    new_work,
    pci,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    workqueue::{
        self,
        Work,
        WorkItem, //
    }, //
};

/// Most events that are taken at one interrupt. A device that has more is out of
/// its mind.
const MAX_EVENTS: usize = 64;

/// One device.
#[pin_data]
pub(crate) struct Device {
    gate: Arc<Gate<Hardware>>,
    maps: Arc<AddressSpace>,
    stats: Arc<Stats>,
    pollers: Arc<Pollers>,
    log: EventLog,
    /// What a request can carry: known without the hardware, which nobody must hold while
    /// pages are faulted in.
    limits: Limits,
    /// Size of the device memory in bytes.
    capacity: Atomic<i64>,
    /// Whether the device memory is behind the aperture.
    aperture_ready: Atomic<bool>,
    /// Whether the work item has to take the device out of service.
    broken: Atomic<bool>,
    /// Whether the work item has to take away maps beyond the end of the memory.
    shrunk: Atomic<bool>,
    /// Serialises [`Self::shut_down`]; set once it is done.
    #[pin]
    down: Mutex<bool>,
    #[pin]
    work: Work<Device>,
}

impl_has_work! {
    impl HasWork<Self> for Device { self.work }
}

impl Device {
    /// Puts the hardware behind a gate. May sleep.
    pub(crate) fn new(
        device: &pci::Device<Bound>,
        hardware: Hardware,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>> {
        let maps = Arc::pin_init(AddressSpace::new(), GFP_KERNEL)?;
        let log = EventLog::new()?;
        // CAST: The configuration was checked to fit.
        let capacity = hardware.config().capacity() as i64;
        let pollers = hardware.pollers().clone();
        let limits = *hardware.limits();
        let gate = Gate::new(device, hardware, maps.clone())?;
        Arc::pin_init(
            pin_init!(Self {
                gate,
                maps,
                stats,
                pollers,
                log,
                limits,
                capacity: Atomic::new(capacity),
                aperture_ready: Atomic::new(false),
                broken: Atomic::new(false),
                shrunk: Atomic::new(false),
                down <- new_mutex!(false),
                work <- new_work!("ringbar"),
            }),
            GFP_KERNEL,
        )
    }

    /// The hardware, `ENODEV` after unbind. Any context.
    #[inline]
    pub(crate) fn hardware(&self) -> Result<Entered<'_, Hardware>> {
        self.gate.enter().ok_or(ENODEV)
    }

    /// What a request can carry, `ENODEV` after unbind. Any context.
    #[inline]
    pub(crate) fn limits(&self) -> Result<&Limits> {
        if self.gate.is_open() {
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
        self.capacity.load(Relaxed)
    }

    /// Whether the device memory can be mapped.
    pub(crate) fn aperture_ready(&self) -> bool {
        self.aperture_ready.load(Acquire)
    }

    /// Says whether the device memory can be mapped from now on.
    pub(crate) fn set_aperture_ready(&self, ready: bool) {
        self.aperture_ready.store(ready, Release);
    }

    /// Starts the device. Sleeps. The interrupt handler must be in place.
    pub(crate) fn start(&self) -> Result {
        let hardware = self.hardware()?;
        let ready = hardware.start(hardware.device())?;
        self.set_aperture_ready(ready);
        // CAST: A capacity is never negative.
        self.log
            .record(uapi::EVENT_STARTED, [self.capacity() as u64, 0]);
        Ok(())
    }

    /// Takes the device out of service: no new requests, the device reset,
    /// everything in flight ended with `error`. Does nothing the second time.
    /// Sleeps.
    ///
    /// Returns whether the device came out of reset, so that its memory may be
    /// freed.
    pub(crate) fn shut_down(&self, error: Error) -> bool {
        let Ok(hardware) = self.hardware() else {
            return true;
        };
        let mut down = self.down.lock();
        if *down {
            return true;
        }
        let device = hardware.device();
        for queue in hardware.queues() {
            queue.stop(error);
        }
        map::revoke_memory(self);
        let reset = hardware.transport.reset(device).is_ok();
        for queue in hardware.queues() {
            queue.fail_in_flight(device, error);
        }
        map::finish_revocation(self);
        *down = true;
        // CAST: An errno is negative.
        let errno = error.to_errno().unsigned_abs();
        self.log.record(uapi::EVENT_STOPPED, [u64::from(errno), 0]);
        reset
    }

    /// Ends all that is left of the hardware: waits for who is in it, takes the user
    /// maps away, frees it. Sleeps. To be called after [`Self::shut_down`],
    /// when no interrupt comes any more.
    pub(crate) fn detach(&self) {
        work::flush(&self.work);
        self.gate.close();
    }

    /// Whether the current task submits a batch: then its end is where the hardware
    /// is notified of what [`Queue::hold_notification`] was called for. Task context;
    /// does not sleep.
    pub(crate) fn in_batch(this: ArcBorrow<'_, Self>) -> bool {
        plug::defer(this)
    }

    /// Notifies the hardware of what was submitted to `queue`, and does what `effort`
    /// says that pays. Task context; does not sleep.
    pub(crate) fn notify(
        this: ArcBorrow<'_, Self>,
        hardware: &Entered<'_, Hardware>,
        queue: &Queue,
        effort: Effort,
    ) {
        let (transport, device) = (&hardware.transport, hardware.device());
        let reaped = match queue.poll_limit(effort, false, hardware.poll_limit()) {
            Some(limit) => queue.notify_and_poll(transport, device, limit),
            None => queue.notify_and_reap(transport, device),
        };
        Self::note(this, queue, device, &reaped);
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
            Self::note(this, queue, device, &reaped);
        }
        for n in 0.. {
            let Some(received) = hardware.events.receive(&hardware.transport, device) else {
                break;
            };
            // Each buffer goes back at once, so a device could keep the CPU here forever.
            let received = if n < MAX_EVENTS {
                received
            } else {
                Received::Broken
            };
            work |= this.handle_event(device, &received);
            if matches!(received, Received::Broken) {
                break;
            }
        }
        if work {
            Self::schedule_work(this);
        }
    }

    /// Has the work item run. Any context.
    pub(crate) fn schedule_work(this: ArcBorrow<'_, Self>) {
        // Already queued is as good.
        let _ = workqueue::system().enqueue(Arc::from(this));
    }

    /// Notes what was seen of a queue, and leaves to the work item what sleeps. Any
    /// context.
    pub(crate) fn note(
        this: ArcBorrow<'_, Self>,
        queue: &Queue,
        device: &pci::Device<Bound>,
        reaped: &Reaped,
    ) {
        if let Some(fault) = reaped.fault {
            dev_err!(
                device,
                "the device broke queue {}: {:?}; it is taken out of service\n",
                queue.index(),
                fault
            );
            this.log
                .record(uapi::EVENT_QUEUE_BROKEN, [queue.index().into(), 0]);
            this.broken.store(true, Release);
        }
        if reaped.deferred || reaped.more || reaped.fault.is_some() {
            Self::schedule_work(this);
        }
    }

    /// Ends what the hardware has done of the polled requests. Returns whether there
    /// was any. Any context.
    pub(crate) fn poll(this: ArcBorrow<'_, Self>) -> Result<bool> {
        let hardware = this.hardware()?;
        let (queue, device) = (hardware.polled_queue(), hardware.device());
        let reaped = queue.reap(device);
        Self::note(this, queue, device, &reaped);
        Ok(reaped.any)
    }

    /// Returns whether there is something left for the work item.
    fn handle_event(&self, device: &pci::Device<Bound>, received: &Received) -> bool {
        match *received {
            Received::Event(Event::QueueBroken { queue, fault }) => {
                dev_err!(
                    device,
                    "the device has given up queue {}: {:?}; it is taken out of service\n",
                    queue,
                    fault
                );
                self.log.record(uapi::EVENT_QUEUE_BROKEN, [queue.into(), 1]);
                self.broken.store(true, Release);
                true
            }
            Received::Event(Event::CapacityChanged { capacity }) => {
                dev_info!(device, "the device now has {} bytes\n", capacity);
                // CAST: An event was checked to fit.
                let before = self.capacity.xchg(capacity as i64, Relaxed);
                self.log.record(uapi::EVENT_CAPACITY, [capacity, 0]);
                let shrunk = (capacity as i64) < before;
                if shrunk {
                    self.shrunk.store(true, Release);
                }
                shrunk
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
            match queue.take_held() {
                // A task that goes to sleep does not wait for this.
                Some(_) if scheduled => Self::notify(this, &hardware, queue, Effort::Notify),
                Some(effort) => Self::notify(this, &hardware, queue, effort),
                None => {}
            }
        }
    }
}

impl WorkItem for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.broken.load(Acquire) {
            this.shut_down(EIO);
        }
        if this.shrunk.xchg(false, Full) {
            map::unmap_beyond_end(&this);
        }
        if let Ok(hardware) = this.hardware() {
            for queue in hardware.queues() {
                // What was more than an interrupt may do.
                let reaped = queue.reap(hardware.device());
                Self::note(this.as_arc_borrow(), queue, hardware.device(), &reaped);
                queue.release_deferred(hardware.device());
            }
        }
    }
}
