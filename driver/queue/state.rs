// SPDX-License-Identifier: GPL-2.0

//! A queue with its slots, and the data that its lock protects.
//!
//! # Locking
//!
//! The state is behind one lock, which is taken with interrupts off, because the interrupt handler
//! takes it too. The driver completes no request under it: a completion may submit again.

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
            Message,
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

/// State of a ring entry.
pub(super) enum Entry {
    /// Its slot is free or being prepared.
    Idle,
    /// The device has the request.
    InFlight(KBox<Slot>),
    /// The device has completed the request, and the thread that waits for it takes the slot back.
    Done(KBox<Slot>),
    /// The device has the request for ever, and the thread that waits for it gets the error.
    Lost(Error),
}

pub(super) struct State {
    pub(super) ring: Ring,
    pub(super) entries: PerEntry<Entry>,
    free: KVec<KBox<Slot>>,
    /// Number of threads that busy-poll the used ring, so that interrupts are disabled.
    pub(super) busy_pollers: usize,
    /// Number of threads that wait for a slot.
    pub(super) waiting: usize,
    /// Number of threads that wait for room in the DMA layer.
    pub(super) waiting_for_dma: usize,
    /// The reason why the queue accepts no more requests.
    pub(super) failed: Option<Error>,
    /// Whether no slot may be acquired for now.
    pub(super) frozen: bool,
    /// Whether the device does not use the ring, because it was reset.
    pub(super) detached: bool,
    /// Whether the ring is out of use, from [`Queue::detach`] until its restart.
    pub(super) quiescing: bool,
    /// The time for which the device has used no entry.
    pub(super) progress: Progress,
}

impl State {
    /// Makes a request available to the device, which sees it once it is published. If the device
    /// is detached, it gets the request after the restart.
    #[inline(always)]
    pub(super) fn put_in_flight(&mut self, slot: KBox<Slot>) {
        let entry = slot.entry();
        if !self.detached {
            self.ring
                .push(entry, slot.buffers.table(), descriptor_flag::INDIRECT);
        }
        self.entries[entry] = Entry::InFlight(slot);
    }

    /// Takes the request that was in flight in `entry`.
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

    /// Leaves a completed request to the thread that waits for it, which has to take the lock
    /// first.
    pub(super) fn put_done(&mut self, slot: KBox<Slot>) {
        slot.wake_waiter();
        let entry = slot.entry();
        self.entries[entry] = Entry::Done(slot);
    }

    /// Takes the slot of a completed request for the thread that waits for it; or returns the error
    /// if the device keeps the slot for ever. `None` while the request is in flight.
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

    /// Whether there are slots that are neither free nor in flight: a thread prepares or completes
    /// requests.
    pub(super) fn has_slots_outside_device(&self) -> bool {
        let in_flight = usize::from(self.ring.in_flight());
        self.free.len() + in_flight < self.entries.len()
    }

    /// Number of slots that may be acquired now.
    pub(super) fn free_slots(&self) -> usize {
        if self.frozen {
            0
        } else {
            self.free.len()
        }
    }

    /// Takes a free slot, if one may be acquired now.
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
    pub(super) message: Message,
    pub(super) doorbell: Doorbell,
    /// Whether callers busy-poll for completions, so that interrupts are disabled.
    pub(super) polled: bool,
    pub(super) policy: PollPolicy,
    stats: Arc<Stats>,
    pub(super) recovery: Arc<Recovery>,
    pub(super) pollers: Arc<Pollers>,
    /// For work that may take any time, depending on other programs, so that unbind must not wait
    /// for it.
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

/// The configuration of a queue.
pub(crate) struct Config {
    /// Index of the queue in the device.
    pub(crate) index: u16,
    /// Number of entries of the ring, if the device allows that many.
    pub(crate) size: u16,
    /// Whether `EVENT_IDX` was negotiated.
    pub(crate) event_idx: bool,
    /// The message of its interrupts.
    pub(crate) message: Message,
    /// Whether callers busy-poll for completions, so that interrupts are disabled.
    pub(crate) polled: bool,
    /// Busy-poll time of a request without data; `None` if submitters do not poll.
    pub(crate) poll_limit: Option<Delta>,
    /// Whether its requests have data.
    pub(crate) with_data: bool,
}

impl Queue {
    /// Allocates a queue and enables it in the device. May sleep.
    ///
    /// `ENODEV` if the device does not have the queue, or it is too small for a request.
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
        // Header and status, and data between them. A chain must not be longer than the queue
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
            transport.enable_queue(device, config.index, &ring.areas(), config.message)?;

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
                message: config.message,
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

    /// The used ring, which user space can map.
    pub(crate) fn used_ring(&self) -> &SharedCoherent<u32> {
        &self.used_ring
    }

    /// Number of entries of the ring, and so of requests in the queue.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Index of the queue in the device.
    #[inline]
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Copies the index up to which used entries were taken, for [`Self::has_used`]. To be called
    /// under the lock, after each change of that index.
    #[inline]
    pub(super) fn update_taken(&self, ring: &Ring) {
        self.taken.store(ring.taken().into(), Relaxed);
    }

    /// Whether the device may have used entries that were not taken. Without the lock, so it is
    /// only a hint if other threads take entries at the same time; these threads then handle them.
    /// Any context.
    #[inline]
    pub(super) fn has_used(&self) -> bool {
        u32::from(self.used_index()) != self.taken.load(Relaxed)
    }

    /// Index up to which the device has used entries, without the lock. Any context.
    #[inline]
    pub(super) fn used_index(&self) -> u16 {
        used_index(&self.used_ring)
    }

    /// Frees slots of completed requests, and wakes threads that wait for slots. Any context, no
    /// lock held.
    pub(super) fn free(&self, slots: impl Iterator<Item = KBox<Slot>>) {
        let mut state = self.state.lock();
        let before = state.free.len();
        for slot in slots {
            // `free` has capacity for every slot of the ring.
            let _ = state.free.push_within_capacity(slot);
        }
        if state.waiting_for_dma > 0 {
            self.dma_freed.notify_all();
        }
        if state.waiting > 0 {
            // A thread that takes a slot wakes the next one, while there are more: so the threads
            // get slots in the order in which they came. A thread that was woken before the thaw
            // would have to queue again.
            if state.free_slots() > 0 {
                self.slot_freed.notify_one();
            }
        } else if before == 0 {
            drop(state);
            self.pollers.notify();
        }
    }

    /// Counts submitted requests and their segments.
    #[inline]
    pub(super) fn count(&self, requests: u64, segments: u64) {
        self.stats.requests(requests, segments);
    }
}

/// A queue with the bound device and its transport.
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
