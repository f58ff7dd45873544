// SPDX-License-Identifier: GPL-2.0

//! A queue of requests: slots are handed out and given to the device here; how
//! they come back is in [`super::completion`].
//!
//! # Locking
//!
//! The state is behind one lock that is taken with interrupts off, because the
//! interrupt handler takes it too. Nothing is completed under it: a completion
//! may submit again.

use super::{
    acquired::AcquiredSlot,
    completion::Reaped,
    polling::{
        Effort,
        Polling, //
    },
    slot::{
        Owner,
        Slot, //
    }, //
};
use crate::{
    abstractions::{
        poll::Pollers,
        wait::Waiter, //
    },
    stats::Stats,
    virtio::{
        ring::Ring,
        transport::{
            Doorbell,
            Transport, //
        }, //
    }, //
};
use kernel::{
    device::Bound,
    dma::Coherent,
    new_condvar,
    new_spinlock_irq,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        CondVar,
        SpinLockIrq, //
    },
    time::{
        Delta,
        Jiffies, //
    }, //
};

/// What a ring entry is up to.
pub(super) enum Entry {
    /// Its slot is free or being prepared.
    Idle,
    /// The device has it.
    InFlight(KBox<Slot>),
    /// The device is done, and the thread that waits for it takes it back.
    Done(KBox<Slot>),
    /// The device has it for ever, and the thread that waits for it gets the error.
    Lost(Error),
}

pub(super) struct State {
    pub(super) ring: Ring,
    pub(super) entries: KVec<Entry>,
    free: KVec<KBox<Slot>>,
    /// Done, but pages have to be made dirty again, which sleeps.
    pub(super) deferred: KVec<KBox<Slot>>,
    /// Those who look at the used ring themselves, so that no interrupts are wanted.
    pub(super) busy_pollers: usize,
    /// Threads that wait for a slot.
    pub(super) waiting: usize,
    /// Why no more requests are taken.
    pub(super) failed: Option<Error>,
    /// Whether no slots are handed out for now.
    pub(super) frozen: bool,
    /// Whether the device does not use the ring, as it was reset.
    pub(super) detached: bool,
}

impl State {
    /// Whether there are slots that are neither free nor in flight: somebody prepares
    /// requests, or ends them.
    pub(super) fn has_slots_in_hand(&self) -> bool {
        let in_flight = usize::from(self.ring.in_flight());
        self.free.len() + self.deferred.len() + in_flight < self.entries.len()
    }

    /// A free slot that may be handed out now.
    fn take_free(&mut self) -> Option<KBox<Slot>> {
        if self.frozen {
            return None;
        }
        self.free.pop()
    }

    /// Whether [`Self::take_free`] would find one.
    fn has_free(&self) -> bool {
        !self.frozen && !self.free.is_empty()
    }

    fn put_free(&mut self, slot: KBox<Slot>) {
        // There is room for every slot of the ring.
        let _ = self.free.push_within_capacity(slot);
    }
}

/// A queue with its slots.
#[pin_data]
pub(crate) struct Queue {
    index: u16,
    size: u16,
    pub(super) vector: u16,
    pub(super) doorbell: Doorbell,
    pub(super) polled: bool,
    pub(super) polling: Polling,
    stats: Arc<Stats>,
    pub(super) pollers: Arc<Pollers>,
    used_ring: Arc<Coherent<[u32]>>,
    /// Whether a notification was put off to the end of a batch.
    held: Atomic<bool>,
    /// Whether it is one of [`Effort::Notify`].
    held_only: Atomic<bool>,
    /// How many bytes the other requests move for which it was put off.
    held_bytes: Atomic<usize>,
    #[pin]
    pub(super) state: SpinLockIrq<State>,
    #[pin]
    pub(super) slot_freed: CondVar,
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
    /// Whether completions are looked for, and no interrupts are wanted.
    pub(crate) polled: bool,
    /// Most data segments of a request.
    pub(crate) max_segments: usize,
    /// Most bytes of a segment.
    pub(crate) max_segment_bytes: usize,
}

impl Queue {
    /// Allocates a queue and enables it in the device. May sleep.
    ///
    /// `ENODEV` where the device does not have the queue.
    pub(crate) fn new(
        transport: &Transport,
        device: &pci::Device<Bound>,
        config: &Config,
        stats: Arc<Stats>,
        pollers: Arc<Pollers>,
    ) -> Result<Arc<Self>> {
        let max = transport.queue_max_size(device, config.index)?;
        if max == 0 {
            return Err(ENODEV);
        }
        let size = config.size.min(max);
        let mut ring = Ring::new(device, size, config.event_idx)?;
        if config.polled {
            ring.disable_interrupts()?;
        }
        let doorbell =
            transport.enable_queue(device, config.index, &ring.areas(), config.vector)?;

        let n = usize::from(size);
        let mut entries = KVec::with_capacity(n, GFP_KERNEL)?;
        let mut free = KVec::with_capacity(n, GFP_KERNEL)?;
        for entry in 0..size {
            entries.push(Entry::Idle, GFP_KERNEL)?;
            let slot = Slot::new(
                device,
                entry,
                // A chain must not be longer than the queue (2.7.5.3.1).
                config.max_segments.min(n.saturating_sub(2)),
                config.max_segment_bytes,
            )?;
            free.push(slot, GFP_KERNEL)?;
        }
        let deferred = KVec::with_capacity(n, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                index: config.index,
                size,
                vector: config.vector,
                doorbell,
                polled: config.polled,
                polling: Polling::new(),
                stats,
                pollers,
                used_ring: ring.used_ring().clone(),
                held: Atomic::new(false),
                held_only: Atomic::new(false),
                held_bytes: Atomic::new(0),
                state <- new_spinlock_irq!(State {
                    ring,
                    entries,
                    free,
                    deferred,
                    busy_pollers: 0,
                    waiting: 0,
                    failed: None,
                    frozen: false,
                    detached: false,
                }),
                slot_freed <- new_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    /// The used ring, to be shown to user space.
    pub(crate) fn used_ring(&self) -> &Coherent<[u32]> {
        &self.used_ring
    }

    /// Index of the queue in the device.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Number of entries.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Takes a slot if one is free and nobody waits for one. Any context.
    ///
    /// `EAGAIN` otherwise; the error of [`Self::stop`] after that.
    pub(crate) fn try_acquire<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
    ) -> Result<AcquiredSlot<'a>> {
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        if state.waiting > 0 {
            return Err(EAGAIN);
        }
        let slot = state.take_free().ok_or(EAGAIN)?;
        Ok(self.acquired(device, slot))
    }

    /// Takes a slot, after all who came before. Sleeps, interruptibly.
    ///
    /// `ERESTARTSYS` after a signal, the error of [`Self::stop`] after that.
    pub(crate) fn acquire<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
    ) -> Result<AcquiredSlot<'a>> {
        match self.try_acquire(device) {
            Err(error) if error == EAGAIN => {}
            result => return result,
        }
        let mut state = self.state.lock();
        state.waiting += 1;
        // Whoever is woken takes a slot before anybody else can: newcomers see `waiting`, and the
        // wait queue wakes in order.
        let slot = loop {
            if let Some(error) = state.failed {
                break Err(error);
            }
            // Only the first waiter may look before it has been woken.
            if state.waiting == 1 {
                if let Some(slot) = state.take_free() {
                    break Ok(slot);
                }
            }
            if self.slot_freed.wait_interruptible(&mut state) {
                break Err(ERESTARTSYS);
            }
            if let Some(slot) = state.take_free() {
                break Ok(slot);
            }
        };
        state.waiting -= 1;
        let more = state.has_free();
        if state.waiting > 0 && more {
            // The wake-up may have come to one who leaves without a slot.
            self.slot_freed.notify_one();
        }
        let room = state.waiting == 0 && more;
        drop(state);
        if room {
            self.pollers.notify();
        }
        slot.map(|slot| self.acquired(device, slot))
    }

    fn acquired<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
        slot: KBox<Slot>,
    ) -> AcquiredSlot<'a> {
        AcquiredSlot::new(self, device, slot)
    }

    pub(super) fn free(&self, slot: KBox<Slot>) {
        let mut state = self.state.lock();
        let was_full = state.free.is_empty();
        state.put_free(slot);
        if state.waiting > 0 {
            self.slot_freed.notify_one();
        } else if was_full {
            drop(state);
            self.pollers.notify();
        }
    }

    /// Whether [`Self::try_acquire`] would find a slot; the error of [`Self::stop`]
    /// after that. Any context.
    pub(crate) fn has_room(&self) -> Result<bool> {
        let state = self.state.lock();
        match state.failed {
            Some(error) => Err(error),
            None => Ok(state.waiting == 0 && state.has_free()),
        }
    }

    /// Gives the requests to the device; [`Self::notify`] has to follow. Any context.
    ///
    /// On an error all requests stay with the caller.
    pub(crate) fn submit(&self, requests: &mut [Option<AcquiredSlot<'_>>]) -> Result {
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        let (mut count, mut segments) = (0, 0);
        for request in requests {
            let Some(slot) = request.take().and_then(AcquiredSlot::into_inner) else {
                continue;
            };
            count += 1;
            segments += slot.segments() as u64;
            state.put_in_flight(slot);
        }
        // The ring has a place for its own index.
        let _ = state.ring.publish();
        drop(state);
        self.count(count, segments);
        Ok(())
    }

    /// Counts requests that the device was given, and their segments.
    pub(super) fn count(&self, requests: u64, segments: u64) {
        self.stats.requests(requests, segments);
    }

    /// Notifies the device of what was submitted, if it wants to know. Any context.
    pub(crate) fn notify(&self, transport: &Transport, device: &pci::Device<Bound>) {
        // When in doubt, yes.
        let wanted = self.state.lock().ring.wants_notification().unwrap_or(true);
        if wanted {
            self.ring_doorbell(transport, device);
        }
    }

    pub(super) fn ring_doorbell(&self, transport: &Transport, device: &pci::Device<Bound>) {
        self.stats.doorbell();
        // The address was checked when the queue was enabled, so this does not fail.
        let _ = transport.ring(device, self.doorbell);
    }

    /// Puts the notification off until somebody asks [`Self::take_held`].
    pub(crate) fn hold_notification(&self, effort: Effort) {
        match effort {
            Effort::Notify => self.held_only.store(true, Relaxed),
            Effort::Poll(bytes) => self.held_bytes.add(bytes, Relaxed),
        }
        self.held.store(true, Release);
    }

    /// Whether the notification was put off, and it is now for the caller to do.
    ///
    /// A flag is enough: whoever puts a notification off has a call of this function
    /// ahead, so at the latest the last of them finds everything submitted.
    pub(crate) fn take_held(&self) -> Option<Effort> {
        if !self.held.xchg(false, Full) {
            return None;
        }
        let bytes = self.held_bytes.xchg(0, Relaxed);
        Some(match self.held_only.xchg(false, Relaxed) {
            true => Effort::Notify,
            false => Effort::Poll(bytes),
        })
    }

    /// As [`Self::submit`], for one request. On an error it comes back.
    pub(crate) fn submit_one<'a>(
        &self,
        request: AcquiredSlot<'a>,
    ) -> Result<(), (Error, Option<AcquiredSlot<'a>>)> {
        let mut requests = [Some(request)];
        self.submit(&mut requests).map_err(|error| {
            let [request] = requests;
            (error, request)
        })
    }

    /// Gives a request to the device and returns its slot when it has ended: looks for
    /// that for `limit`, and tells `note` what was seen, then waits. Sleeps.
    ///
    /// `EINTR` when killed in the meantime: the request goes on, and lets go of its
    /// pages by itself.
    fn execute<'a>(
        &'a self,
        transport: &Transport,
        device: &'a pci::Device<Bound>,
        mut request: AcquiredSlot<'a>,
        limit: Option<Delta>,
        note: impl FnOnce(&Reaped),
        wait: impl FnOnce(&Waiter) -> Result,
    ) -> Result<KBox<Slot>> {
        let slot = request.slot_mut()?;
        let entry = usize::from(slot.entry());
        let waiter = slot.waiter().clone();
        // A killed predecessor may have left a wake-up behind.
        waiter.rearm();
        let ended = match limit {
            Some(limit) => {
                let (seen, ended) =
                    self.submit_and_poll(transport, device, request, limit, || Owner::Waiting)?;
                note(&seen);
                ended
            }
            None => {
                slot.owner = Owner::Waiting;
                self.submit_one(request).map_err(|(error, _)| error)?;
                self.notify(transport, device);
                None
            }
        };
        if let Some(slot) = ended {
            return Ok(slot);
        }
        let waited = wait(&waiter);
        let mut state = self.state.lock();
        let place = state.entries.get_mut(entry).ok_or(EIO)?;
        match core::mem::replace(place, Entry::Idle) {
            Entry::Done(slot) => Ok(slot),
            Entry::InFlight(mut slot) => {
                slot.owner = Owner::Nobody;
                *place = Entry::InFlight(slot);
                Err(waited.err().unwrap_or(EIO))
            }
            Entry::Lost(error) => Err(error),
            Entry::Idle => Err(EIO),
        }
    }

    /// Lets go of what a request held that has ended. Sleeps.
    fn release(&self, device: &pci::Device<Bound>, mut slot: KBox<Slot>) {
        slot.release(device);
        self.free(slot);
    }

    /// Executes a transfer and waits for its end. Sleeps. Errors as of
    /// [`Self::execute`], and of the transfer.
    pub(crate) fn execute_transfer<'a>(
        &'a self,
        transport: &Transport,
        device: &'a pci::Device<Bound>,
        request: AcquiredSlot<'a>,
        limit: Option<Delta>,
        note: impl FnOnce(&Reaped),
    ) -> Result<usize> {
        let wait = |waiter: &Waiter| waiter.wait_killable();
        let slot = self.execute(transport, device, request, limit, note, wait)?;
        let outcome = slot.transfer_outcome();
        self.release(device, slot);
        outcome.into_result()
    }

    /// Executes a command and waits for its end, at most `timeout` if there is one.
    /// Sleeps. Returns the value of the command.
    pub(crate) fn execute_command<'a>(
        &'a self,
        transport: &Transport,
        device: &'a pci::Device<Bound>,
        request: AcquiredSlot<'a>,
        timeout: Option<Jiffies>,
    ) -> Result<u64> {
        let wait = |waiter: &Waiter| match timeout {
            Some(timeout) => waiter.wait_timeout(timeout),
            None => waiter.wait_killable(),
        };
        let slot = self.execute(transport, device, request, None, |_| {}, wait)?;
        let outcome = slot.command_outcome();
        self.release(device, slot);
        outcome
    }
}
