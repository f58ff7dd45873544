// SPDX-License-Identifier: GPL-2.0

//! The only queue of a device, with the registers that set it up.
//!
//! ```text
//!                 start                 reap: the device broke the ring
//!  stopped ---------------> running ------------------------------------> broken
//!     ^                        |                                             |
//!     +------------------------+-------- stop: all values come back ---------+
//! ```

use crate::{
    abstractions::{
        dma::range::DmaRange,
        pci::device::iommu_translates, //
    },
    virtio::{
        reset::{
            Quiesced,
            Unstoppable, //
        },
        transport::{
            feature,
            Doorbell,
            Message,
            Transport, //
        },
        virtqueue::Virtqueue, //
    }, //
};
use core::mem::replace;
use kernel::{
    device::Bound,
    new_mutex,
    new_spinlock_irq,
    pci,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        MutexGuard,
        SpinLockIrq, //
    }, //
};

/// The only queue, and the message that it sends.
const QUEUE: u16 = 0;
const MESSAGE: Message = Some(0);

/// Number of entries of the queue, and so of descriptors of a request (VIRTIO 1.3, 2.7.5.3.1).
pub(crate) const ENTRIES: u16 = 256;

/// A queue whose requests own a `T` each.
#[pin_data]
pub(crate) struct DeviceQueue<T: 'static> {
    transport: Transport,
    features: u64,
    doorbell: Doorbell,
    /// Held while the device is being started or stopped.
    #[pin]
    lifecycle: Mutex<MayStart>,
    #[pin]
    state: SpinLockIrq<State<T>>,
}

struct State<T: 'static> {
    queue: Virtqueue<T>,
    condition: Condition,
}

/// Whether the device may be started. Not once the system is being shut down.
struct MayStart(bool);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Stopped,
    Running,
    Broken,
}

impl<T: Send + 'static> DeviceQueue<T> {
    /// Sets up the queue of a device, which does not run yet. May sleep.
    pub(crate) fn new(device: &pci::Device<Bound>, transport: Transport) -> Result<Arc<Self>> {
        const REQUIRED: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;
        const WANTED: u64 = feature::EVENT_IDX | feature::ACCESS_PLATFORM;

        let quiesced = transport.quiesce(device).map_err(|_| EIO)?;
        let features = transport.negotiate(device, &quiesced, REQUIRED, WANTED)?;
        if features & feature::ACCESS_PLATFORM == 0 && iommu_translates(device) {
            dev_err!(
                device,
                "an IOMMU translates this device's addresses, but the device bypasses it: boot with \
                 iommu=pt, leave the IOMMU away, or use the vfio-user transport\n"
            );
            transport.fail(device);
            return Err(EOPNOTSUPP);
        }
        // A chain must not be longer than its queue (VIRTIO 1.3, 2.7.5.3.1).
        if transport.queue_max_size(device, QUEUE)? < ENTRIES {
            dev_err!(device, "the queue has fewer than {} entries\n", ENTRIES);
            transport.fail(device);
            return Err(ENODEV);
        }
        let queue = Virtqueue::new(device, ENTRIES, features & feature::EVENT_IDX != 0)?;
        transport.set_config_vector(device, None)?;
        let doorbell = transport.enable_queue(device, QUEUE, &queue.areas(), MESSAGE)?;
        Arc::pin_init(
            pin_init!(Self {
                transport,
                features,
                doorbell,
                lifecycle <- new_mutex!(MayStart(true)),
                state <- new_spinlock_irq!(State {
                    queue,
                    condition: Condition::Stopped,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// The first `N` bytes of the device's configuration, as of [`Transport::device_config`].
    pub(crate) fn config<const N: usize>(&self, device: &pci::Device<Bound>) -> Result<[u8; N]> {
        self.transport.device_config(device)
    }

    /// Makes `value` available to the device: `describe` says where its table of descriptors is, or
    /// its only buffer, as of [`Virtqueue::add`]. Any context.
    ///
    /// Returns the value if the device does not have it: with `EIO` if the device does not run,
    /// `EAGAIN` if the queue is full.
    pub(crate) fn submit(
        &self,
        device: &pci::Device<Bound>,
        value: T,
        describe: impl FnOnce(&T) -> (DmaRange<'_>, u16),
    ) -> Result<(), (Error, T)> {
        let notify = {
            let mut state = self.state.lock();
            if state.condition != Condition::Running {
                return Err((EIO, value));
            }
            let queue = &mut state.queue;
            queue
                .add(value, describe)
                .map_err(|value| (EAGAIN, value))?;
            queue.publish();
            queue.wants_notification()
        };
        // Without the doorbell the device does not see the value, which comes back at the next stop.
        if notify && self.transport.ring(device, self.doorbell).is_err() {
            self.state.lock().condition = Condition::Broken;
        }
        Ok(())
    }

    /// Takes the values that the device has used; `used` gets each with the number of bytes that the
    /// device says it has written, and returns whether that is possible. If the device broke the ring
    /// or wrote an impossible number, nothing more comes back before [`Lifecycle::stop`]: then
    /// `broken` gets the queue, before anybody can stop the device. Both are called with a spinlock
    /// held. Any context.
    pub(crate) fn reap(
        &self,
        used: impl FnMut(T, u32) -> bool,
        broken: impl FnOnce(&Virtqueue<T>),
    ) {
        let mut state = self.state.lock();
        if state.reap(used).is_err() {
            broken(&state.queue);
        }
    }

    /// Whether the device runs. Any context.
    pub(crate) fn is_running(&self) -> bool {
        self.state.lock().condition == Condition::Running
    }

    /// Whether the device was stopped, or keeps its values because it cannot be stopped. Any context.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().condition == Condition::Stopped
    }

    /// Whether the device has broken the queue, so that it has to be reset. Any context.
    pub(crate) fn is_broken(&self) -> bool {
        self.state.lock().condition == Condition::Broken
    }

    /// The right to start and to stop the device. Sleeps for other threads that have it.
    pub(crate) fn lifecycle(&self) -> Lifecycle<'_, T> {
        Lifecycle {
            queue: self,
            may_start: self.lifecycle.lock(),
        }
    }
}

impl<T> State<T> {
    /// `EPROTO` if the queue is broken from now on.
    fn reap(&mut self, mut used: impl FnMut(T, u32) -> bool) -> Result {
        if self.condition != Condition::Running {
            return Ok(());
        }
        let possible = loop {
            match self.queue.get_buf() {
                Ok(Some((value, len))) => {
                    if !used(value, len) {
                        break false;
                    }
                }
                Ok(None) if self.queue.enable_interrupts() => {}
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        if !possible {
            self.condition = Condition::Broken;
        }
        possible.then_some(()).ok_or(EPROTO)
    }
}

/// The right to start and to stop a device.
pub(crate) struct Lifecycle<'a, T: 'static> {
    queue: &'a DeviceQueue<T>,
    may_start: MutexGuard<'a, MayStart>,
}

impl<T: Send + 'static> Lifecycle<'_, T> {
    /// Stops the device, which accesses no memory then. `used` gets the values that it has used, as
    /// of [`DeviceQueue::reap`], and then `unused` the others, with the proof and with a spinlock
    /// held. Sleeps.
    ///
    /// A device that is [`Unstoppable`] keeps its values, and gets no more.
    pub(crate) fn stop(
        &mut self,
        device: &pci::Device<Bound>,
        used: impl FnMut(T, u32) -> bool,
        mut unused: impl FnMut(T),
    ) -> Result<Quiesced, Unstoppable> {
        let before = {
            let mut state = self.queue.state.lock();
            replace(&mut state.condition, Condition::Stopped)
        };
        let quiesced = self.queue.transport.quiesce(device)?;
        let mut state = self.queue.state.lock();
        // If it ran, the device has used these before it was stopped.
        state.condition = before;
        let _ = state.reap(used);
        state.condition = Condition::Stopped;
        while let Some(value) = state.queue.detach_unused_buf(&quiesced) {
            unused(value);
        }
        Ok(quiesced)
    }

    /// Makes every later start fail.
    pub(crate) fn forbid_start(&mut self) {
        *self.may_start = MayStart(false);
    }

    /// Whether [`Self::forbid_start`] has not been called.
    pub(crate) fn may_start(&self) -> bool {
        let MayStart(may_start) = *self.may_start;
        may_start
    }

    /// Starts the device, which was stopped. Sleeps. `ENODEV` after [`Self::forbid_start`].
    pub(crate) fn start(&mut self, device: &pci::Device<Bound>, quiesced: Quiesced) -> Result {
        if !self.may_start() {
            return Err(ENODEV);
        }
        let DeviceQueue {
            transport,
            features,
            doorbell,
            ..
        } = self.queue;
        transport.negotiate(device, &quiesced, *features, 0)?;
        let areas = {
            let mut state = self.queue.state.lock();
            state.queue.restart(&quiesced)?;
            state.queue.areas()
        };
        transport.set_config_vector(device, None)?;
        transport.enable_queue_again(device, *doorbell, &areas, MESSAGE)?;
        transport.start(device, quiesced)?;
        // Not before: a doorbell that comes before the start is lost.
        self.queue.state.lock().condition = Condition::Running;
        Ok(())
    }
}
