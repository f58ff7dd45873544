// SPDX-License-Identifier: GPL-2.0

//! A queue with its slots, and what its lock protects.
//!
//! # Locking
//!
//! The state is behind one lock that is taken with interrupts off, because the
//! interrupt handler takes it too. Nothing is completed under it: a completion
//! may submit again.

use super::{
    poll_policy::PollPolicy,
    progress::Progress,
    slot::Slot, //
};
use crate::{
    abstractions::{
        fs::poll::Pollers,
        mm::shared_memory::SharedCoherent,
        module,
        task::{
            wait::WaitQueue,
            work::WorkQueue, //
        }, //
    },
    recovery::Recovery,
    stats::Stats,
    virtio::{
        ring::{
            descriptor_flag,
            used_index,
            EntryId,
            PerEntry,
            Ring, //
        },
        transport::{
            Doorbell,
            Transport, //
        }, //
    }, //
};
use core::{
    mem::replace,
    ops::Deref, //
};
use kernel::{
    device::Bound,
    new_spinlock_irq,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLockIrq, //
    },
    time::Delta, //
};

/// What a ring entry is up to.
pub(super) enum Entry {
    /// Its slot is free or being prepared.
    Idle,
    /// The device has it.
    InFlight(KBox<Slot>),
    /// The device is done, and the thread that waits for it takes the slot back.
    Done(KBox<Slot>),
    /// The device has it for ever, and the thread that waits for it gets the error.
    Lost(Error),
}

pub(super) struct State {
    pub(super) ring: Ring,
    pub(super) entries: PerEntry<Entry>,
    free: KVec<KBox<Slot>>,
    /// Number of threads that busy-poll the used ring, so that no interrupts are wanted.
    pub(super) busy_pollers: usize,
    /// Number of threads that wait for a slot.
    pub(super) waiting: usize,
    /// Number of threads that wait for room in the DMA layer.
    pub(super) waiting_for_dma: usize,
    /// Why no more requests are taken.
    pub(super) failed: Option<Error>,
    /// Whether no slots are handed out for now.
    pub(super) frozen: bool,
    /// Whether the device does not use the ring, as it was reset.
    pub(super) detached: bool,
    /// Whether the ring is given up, from [`Queue::detach`] until it begins anew.
    pub(super) quiescing: bool,
    /// For how long the device has used nothing.
    pub(super) progress: Progress,
}

impl State {
    /// Makes a request available to the device, which sees it once it is published. A
    /// device that is not there gets it when it is back.
    pub(super) fn put_in_flight(&mut self, slot: KBox<Slot>) {
        let entry = slot.entry();
        if !self.detached {
            self.ring
                .push(entry, slot.buffers.table(), descriptor_flag::INDIRECT);
        }
        self.entries[entry] = Entry::InFlight(slot);
    }

    /// The request that was in flight in `entry`.
    pub(super) fn take_in_flight(&mut self, entry: EntryId) -> Option<KBox<Slot>> {
        let place = &mut self.entries[entry];
        match replace(place, Entry::Idle) {
            Entry::InFlight(slot) => Some(slot),
            other => {
                *place = other;
                None
            }
        }
    }

    /// Gives a request that has ended to the thread that waits for it, which has to take the
    /// lock first.
    pub(super) fn put_done(&mut self, slot: KBox<Slot>) {
        slot.wake_waiter();
        let entry = slot.entry();
        self.entries[entry] = Entry::Done(slot);
    }

    /// The slot of a request that has ended, and whose thread takes it back; or the error
    /// where the device keeps it for ever. `None` while it is in flight.
    pub(super) fn take_done(&mut self, entry: EntryId) -> Option<Result<KBox<Slot>>> {
        match replace(&mut self.entries[entry], Entry::Idle) {
            Entry::Done(slot) => Some(Ok(slot)),
            Entry::Lost(error) => Some(Err(error)),
            other => {
                self.entries[entry] = other;
                None
            }
        }
    }

    /// Whether there are slots that are neither free nor in flight: somebody prepares
    /// requests, or ends them.
    pub(super) fn has_slots_outside_device(&self) -> bool {
        let in_flight = usize::from(self.ring.in_flight());
        self.free.len() + in_flight < self.entries.len()
    }

    /// Number of slots that may be handed out now.
    pub(super) fn free_slots(&self) -> usize {
        if self.frozen {
            0
        } else {
            self.free.len()
        }
    }

    /// A free slot that may be handed out now.
    pub(super) fn take_free(&mut self) -> Option<KBox<Slot>> {
        if self.frozen {
            return None;
        }
        self.free.pop()
    }
}

/// A queue with its slots.
#[pin_data]
pub(crate) struct Queue {
    index: u16,
    size: u16,
    pub(super) vector: u16,
    pub(super) doorbell: Doorbell,
    /// Whether callers busy-poll for completions, and no interrupts are wanted.
    pub(super) polled: bool,
    pub(super) policy: PollPolicy,
    stats: Arc<Stats>,
    pub(super) recovery: Arc<Recovery>,
    pub(super) pollers: Arc<Pollers>,
    /// For what may take as long as others like, so that the device's end must not wait for it.
    pub(super) work: Arc<WorkQueue>,
    used_ring: Arc<SharedCoherent<u32>>,
    /// Copy of [`Ring::taken`], to be read without the lock.
    taken: Atomic<u32>,
    #[pin]
    pub(super) state: SpinLockIrq<State>,
    #[pin]
    pub(super) slot_freed: WaitQueue,
    #[pin]
    pub(super) dma_freed: WaitQueue,
}

/// What a queue is made of.
pub(crate) struct Config {
    /// Index of the queue in the device.
    pub(crate) index: u16,
    /// Entries of the ring, if the device allows that many.
    pub(crate) size: u16,
    /// Whether `EVENT_IDX` was negotiated.
    pub(crate) event_idx: bool,
    /// Interrupt vector.
    pub(crate) vector: u16,
    /// Whether callers busy-poll for completions, and no interrupts are wanted.
    pub(crate) polled: bool,
    /// Busy-poll time of a request without data; `None` where submitters do not poll.
    pub(crate) poll_limit: Option<Delta>,
    /// Whether its requests have data.
    pub(crate) with_data: bool,
}

impl Queue {
    /// Allocates a queue and enables it in the device. May sleep.
    ///
    /// `ENODEV` where the device does not have the queue, or it is too small for a request.
    pub(crate) fn new(
        transport: &Transport,
        device: &pci::Device<Bound>,
        config: &Config,
        stats: Arc<Stats>,
        recovery: Arc<Recovery>,
        pollers: Arc<Pollers>,
    ) -> Result<Arc<Self>> {
        let max = transport.queue_max_size(device, config.index)?;
        if max == 0 {
            return Err(ENODEV);
        }
        let size = config.size.min(max);
        // Header and status, and data between them; a chain must not be longer than the queue
        // (2.7.5.3.1).
        let needed = if config.with_data { 3 } else { 2 };
        if size < needed {
            dev_err!(
                device,
                "queue {} has {} entries, but a request takes {}: set vq_size of the virtual \
                 device to at least 4\n",
                config.index,
                size,
                needed
            );
            return Err(ENODEV);
        }
        let mut ring = Ring::new(device, size, config.event_idx)?;
        if config.polled {
            ring.disable_interrupts();
        }
        let doorbell =
            transport.enable_queue(device, config.index, &ring.areas(), config.vector)?;

        let n = usize::from(size);
        let entries = PerEntry::new(&ring, |_| Ok(Entry::Idle))?;
        let mut free = KVec::with_capacity(n, GFP_KERNEL)?;
        for entry in ring.entries() {
            free.push(Slot::new(device, entry, config.with_data)?, GFP_KERNEL)?;
        }
        Arc::pin_init(
            try_pin_init!(Self {
                index: config.index,
                size,
                vector: config.vector,
                doorbell,
                polled: config.polled,
                policy: PollPolicy::new(config.poll_limit),
                stats,
                recovery,
                pollers,
                work: module::work_queue()?,
                used_ring: ring.used_ring().clone(),
                taken: Atomic::new(0),
                state <- new_spinlock_irq!(State {
                    ring,
                    entries,
                    free,
                    busy_pollers: 0,
                    waiting: 0,
                    waiting_for_dma: 0,
                    failed: None,
                    frozen: false,
                    detached: false,
                    quiescing: false,
                    progress: Progress::new(),
                }),
                slot_freed <- WaitQueue::new(),
                dma_freed <- WaitQueue::new(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The used ring, to be shown to user space.
    pub(crate) fn used_ring(&self) -> &SharedCoherent<u32> {
        &self.used_ring
    }

    /// Entries of the ring, and so requests that it can hold.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Index of the queue in the device.
    #[inline]
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Copies how far used entries were taken, for [`Self::has_used`]. To be called under the
    /// lock, after each change of that.
    #[inline]
    pub(super) fn update_taken(&self, ring: &Ring) {
        self.taken.store(ring.taken().into(), Relaxed);
    }

    /// Whether the device may have used entries that were not taken. Without the lock, so only
    /// a hint where others take entries at the same time: then they see to those. Any context.
    #[inline]
    pub(super) fn has_used(&self) -> bool {
        u32::from(self.used_index()) != self.taken.load(Relaxed)
    }

    /// Index that the device has used entries up to, without the lock. Any context.
    #[inline]
    pub(super) fn used_index(&self) -> u16 {
        used_index(&self.used_ring)
    }

    /// Frees slots of requests that have ended, and wakes who waits for that. Any context, no
    /// lock held.
    pub(super) fn free(&self, slots: impl Iterator<Item = KBox<Slot>>) {
        let mut state = self.state.lock();
        let before = state.free.len();
        for slot in slots {
            // There is room for every slot of the ring.
            let _ = state.free.push_within_capacity(slot);
        }
        if state.waiting_for_dma > 0 {
            self.dma_freed.notify_all();
        }
        if state.waiting > 0 {
            // Whoever takes a slot wakes the next, while there are more: so they get them in the
            // order in which they came. Who is woken before the thaw would have to queue anew.
            if state.free_slots() > 0 {
                self.slot_freed.notify_one();
            }
        } else if before == 0 {
            drop(state);
            self.pollers.notify();
        }
    }

    /// Counts requests that the device was given, and their segments.
    #[inline]
    pub(super) fn count(&self, requests: u64, segments: u64) {
        self.stats.requests(requests, segments);
    }
}

/// A queue of a device that is bound, with what it takes to notify the device.
#[derive(Clone, Copy)]
pub(crate) struct QueueRef<'a> {
    pub(super) queue: &'a Queue,
    transport: &'a Transport,
    device: &'a pci::Device<Bound>,
}

impl<'a> QueueRef<'a> {
    /// `queue` of `device`, whose registers are those of `transport`.
    #[inline]
    pub(crate) fn new(
        queue: &'a Queue,
        transport: &'a Transport,
        device: &'a pci::Device<Bound>,
    ) -> Self {
        Self {
            queue,
            transport,
            device,
        }
    }

    /// The device.
    #[inline]
    pub(super) fn device(self) -> &'a pci::Device<Bound> {
        self.device
    }

    /// The device's registers.
    pub(super) fn transport(self) -> &'a Transport {
        self.transport
    }

    /// Rings the doorbell. Any context.
    #[inline]
    pub(super) fn ring_doorbell(self) {
        self.stats.doorbell();
        // The address was checked when the queue was enabled, so this does not fail.
        let _ = self.transport.ring(self.device, self.doorbell);
    }
}

impl Deref for QueueRef<'_> {
    type Target = Queue;

    #[inline]
    fn deref(&self) -> &Queue {
        self.queue
    }
}
