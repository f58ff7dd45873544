// SPDX-License-Identifier: GPL-2.0

//! A device that fills buffers, while it is bound.

use super::{
    buffer::{
        Buffer,
        Pinned, //
    },
    slots::{
        Condition,
        Filled,
        ReleasedSlots,
        Slots, //
    }, //
};
use crate::{
    abstractions::{
        dma::segments::Ownership,
        pci::{
            irq,
            revocable::Revoked, //
        },
        ratelimit, //
    },
    simple::{
        queue::{
            DeviceQueue,
            Lifecycle,
            ENTRIES, //
        },
        started::Hardware, //
    },
    virtio::{
        reset::{
            Quiesced,
            Unstoppable, //
        },
        transport::Transport, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    sync::Arc, //
};

/// Greatest number of buffers.
pub(crate) const MAX_BUFFERS: usize = ENTRIES as usize;

/// A device that fills buffers with metadata of `M` bytes each, a multiple of 8 up to
/// [`MAX_METADATA`](super::buffer::MAX_METADATA).
pub(crate) struct Stream<const M: usize> {
    queue: Arc<DeviceQueue<KBox<Buffer>>>,
    slots: Arc<Slots<M>>,
}

/// Takes the buffers that the device has filled.
pub(crate) struct FillHandler<const M: usize> {
    queue: Arc<DeviceQueue<KBox<Buffer>>>,
    slots: Arc<Slots<M>>,
}

impl<const M: usize> irq::Handler for FillHandler<M> {
    fn handle(&self) -> bool {
        self.queue.reap(
            |buffer, len| self.slots.put_filled(buffer, len),
            |_| self.slots.set_condition(Condition::Failed),
        );
        self.slots.notify();
        true
    }
}

impl<const M: usize> Hardware for Stream<M> {
    type Handler = FillHandler<M>;

    fn new(device: &pci::Device<Bound>, transport: Transport) -> Result<Self> {
        Ok(Self {
            queue: DeviceQueue::new(device, transport)?,
            slots: Slots::new()?,
        })
    }

    fn handler(&self) -> FillHandler<M> {
        FillHandler {
            queue: self.queue.clone(),
            slots: self.slots.clone(),
        }
    }

    fn start(&self, device: &pci::Device<Bound>) -> Result {
        let mut lifecycle = self.queue.lifecycle();
        let quiesced = self
            .stop_queue(&mut lifecycle, device)
            .map_err(|Unstoppable| EIO)?;
        self.start_queue(&mut lifecycle, device, quiesced)
    }

    fn stop(&self, device: &pci::Device<Bound>) -> Result {
        let mut lifecycle = self.queue.lifecycle();
        self.stop_queue(&mut lifecycle, device)
            .map(drop)
            .map_err(|Unstoppable| EIO)
    }

    fn shut_down(&self, device: &pci::Device<Bound>) {
        let mut lifecycle = self.queue.lifecycle();
        lifecycle.forbid_start();
        // A failure was logged.
        let _ = self.stop_queue(&mut lifecycle, device);
        self.set_condition(Condition::Gone);
    }
}

impl<const M: usize> Stream<M> {
    /// The buffers, for those who wait for them; they outlive the hardware.
    pub(crate) fn slots(&self) -> &Arc<Slots<M>> {
        &self.slots
    }

    /// The first `N` bytes of the device's configuration. Sleeps.
    pub(crate) fn config<const N: usize>(&self, device: &pci::Device<Bound>) -> Result<[u8; N]> {
        self.queue.config(device)
    }

    /// Maps buffers, which are idle then, and whose numbers are their positions. Sleeps.
    ///
    /// `EIO` if the device has failed, `EBUSY` if there are some buffers already, `EINVAL` for more
    /// than [`MAX_BUFFERS`], `EAGAIN` if there is no room for DMA at the moment.
    pub(crate) fn register(
        &self,
        device: &pci::Device<Bound>,
        pinned: KVec<Pinned<impl Ownership>>,
    ) -> Result {
        if pinned.len() > MAX_BUFFERS {
            return Err(EINVAL);
        }
        let mut buffers = KVec::with_capacity(pinned.len(), GFP_KERNEL)?;
        let mut mapped = Ok(());
        for (index, pinned) in pinned.into_iter().enumerate() {
            match Buffer::new::<M>(device, index, pinned) {
                Ok(buffer) => {
                    // It has capacity for all of them.
                    let _ = buffers.push_within_capacity(buffer);
                }
                Err(error) => {
                    mapped = Err(error);
                    break;
                }
            }
        }
        let lifecycle = self.queue.lifecycle();
        let set = match mapped {
            Ok(()) => self.slots.set(buffers),
            Err(error) => Err((error, buffers)),
        };
        drop(lifecycle);
        set.map_err(|(error, buffers)| {
            for buffer in buffers {
                KBox::into_inner(buffer).release_unused(device);
            }
            error
        })
    }

    /// Posts an idle buffer. Sleeps.
    ///
    /// `EINVAL` if there is no such buffer, `EBUSY` if it is not idle, `EIO` if the device has
    /// failed.
    pub(crate) fn post(&self, device: &pci::Device<Bound>, index: usize) -> Result {
        // So that nobody else misses the buffer while it is in no list.
        let _lifecycle = self.queue.lifecycle();
        self.submit(device, self.slots.take_idle(index)?)
            .map_err(|(error, buffer)| {
                self.slots.put_idle(buffer);
                error
            })
    }

    fn submit(
        &self,
        device: &pci::Device<Bound>,
        mut buffer: KBox<Buffer>,
    ) -> Result<(), (Error, KBox<Buffer>)> {
        buffer.prepare::<M>(device);
        self.queue
            .submit(device, buffer, |buffer| buffer.table())
            .map_err(|(error, mut buffer)| {
                // The program has it again, and what it writes stays.
                buffer.sync_for_cpu(device);
                (error, buffer)
            })?;
        // Without its doorbell the queue is broken. Nobody starts the device again meanwhile: the caller
        // has the lifecycle.
        if self.queue.is_broken() {
            self.set_condition(Condition::Failed);
        }
        Ok(())
    }

    /// Sets the condition, and wakes all who wait.
    fn set_condition(&self, condition: Condition) {
        self.slots.set_condition(condition);
        self.slots.notify();
    }

    /// Takes the buffer that the device has filled first, which is idle then. `None` if there is none
    /// yet, `EIO` if the device has failed. Sleeps, but does not wait for the device.
    pub(crate) fn take(&self, device: &pci::Device<Bound>) -> Result<Option<Filled<M>>> {
        let _lifecycle = self.queue.lifecycle();
        let Some((mut buffer, filled)) = self.slots.take_filled()? else {
            return Ok(None);
        };
        buffer.sync_for_cpu(device);
        self.slots.put_idle(buffer);
        Ok(Some(filled))
    }

    /// Takes all buffers away from the device, which is reset, and starts it again unless the system is
    /// being shut down. Sleeps. The caller drops the result without access to the hardware.
    ///
    /// `EIO` if the device does not stop: then the buffers stay pinned until it does.
    pub(crate) fn unregister(&self, device: &pci::Device<Bound>) -> Result<ReleasedSlots<M>> {
        let mut lifecycle = self.queue.lifecycle();
        match self.stop_queue(&mut lifecycle, device) {
            Ok(quiesced) => {
                let released = self.slots.release_all(device, &quiesced);
                // Programs still end while the system is being shut down.
                if lifecycle.may_start()
                    && self.start_queue(&mut lifecycle, device, quiesced).is_err()
                {
                    dev_err!(device, "the device does not start again\n");
                }
                Ok(released)
            }
            Err(Unstoppable) => {
                self.slots.abandon();
                Err(EIO)
            }
        }
    }

    fn stop_queue(
        &self,
        lifecycle: &mut Lifecycle<'_, KBox<Buffer>>,
        device: &pci::Device<Bound>,
    ) -> Result<Quiesced, Unstoppable> {
        let slots = &self.slots;
        let quiesced = lifecycle
            .stop(
                device,
                |buffer, len| slots.put_filled(buffer, len),
                |buffer| slots.put_withdrawn(buffer),
            )
            .inspect_err(|_| self.set_condition(Condition::Failed))?;
        if slots.are_abandoned() {
            // Pages that are pinned for long are none of a file system in user space, so their
            // release does not wait for one.
            drop(slots.release_all(device, &quiesced));
        }
        Ok(quiesced)
    }

    /// Starts the device, and posts what was withdrawn. `ENODEV` once the system is being shut down:
    /// then the condition stays [`Condition::Gone`].
    fn start_queue(
        &self,
        lifecycle: &mut Lifecycle<'_, KBox<Buffer>>,
        device: &pci::Device<Bound>,
        quiesced: Quiesced,
    ) -> Result {
        if !lifecycle.may_start() {
            return Err(ENODEV);
        }
        // Before the queue runs, so that a failure that its interrupt notices is not lost. Nobody posts
        // meanwhile: that takes the lifecycle.
        self.set_condition(Condition::InService);
        let started = lifecycle.start(device, quiesced).and_then(|()| {
            while let Some(buffer) = self.slots.take_withdrawn() {
                if let Err((error, buffer)) = self.submit(device, buffer) {
                    self.slots.put_withdrawn(buffer);
                    return Err(error);
                }
            }
            Ok(())
        });
        started.inspect_err(|_| {
            self.set_condition(Condition::Failed);
            if ratelimit::allows() {
                dev_err!(device, "the device does not fill buffers any more\n");
            }
        })
    }
}

impl<const M: usize> Revoked for Stream<M> {
    /// Frees everything, unless the device may use it for ever.
    fn revoked(self, device: &pci::Device<Bound>) {
        self.slots.abandon();
        let stopped = self.stop_queue(&mut self.queue.lifecycle(), device);
        self.set_condition(Condition::Gone);
        if let Err(Unstoppable) = stopped {
            self.slots.leak_all();
            core::mem::forget(self);
        }
    }
}
