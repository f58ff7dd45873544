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
    caller::{
        Caller,
        Waiting, //
    },
    completion::Reaped,
    lifecycle::Progress,
    polling::{
        Polled,
        Polling, //
        WaitStrategy,
    },
    request::{
        AcquiredSlot,
        Command,
        Request,
        Transfer, //
    },
    slot::{
        Completion,
        Slot, //
    }, //
};
use crate::{
    abstractions::{
        dma::segments::{
            CleanedPages,
            Ownership, //
        },
        fs::poll::Pollers,
        mm::shared_memory::SharedCoherent,
        module,
        task::{
            wait::{
                KernelCompletion, //
                Signals,
                WaitQueue,
            },
            work::WorkQueue, //
        }, //
    },
    stats::Stats,
    virtio::{
        ring::{
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
use core::mem::replace;
use kernel::{
    device::Bound,
    new_spinlock_irq,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        }, //
        Arc,
        SpinLockIrq,
    },
    time::{
        msecs_to_jiffies, //
        Delta,
        Jiffies,
        Msecs,
    }, //
};

/// How long to wait for room in the DMA layer before it is tried again: nobody tells when
/// another device gives something back. As of `BLK_MQ_RESOURCE_DELAY` in `block/blk-mq.c`.
const DMA_ROOM_MS: Msecs = 3;

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
    pub(super) entries: PerEntry<Entry>,
    free: KVec<KBox<Slot>>,
    /// Those who look at the used ring themselves, so that no interrupts are wanted.
    pub(super) busy_pollers: usize,
    /// Threads that wait for a slot.
    pub(super) waiting: usize,
    /// Threads that wait for room in the DMA layer.
    waiting_for_dma: usize,
    /// Why no more requests are taken.
    pub(super) failed: Option<Error>,
    /// Whether no slots are handed out for now.
    pub(super) frozen: bool,
    /// Whether the device does not use the ring, as it was reset.
    pub(super) detached: bool,
    /// For how long the device has used nothing.
    pub(super) progress: Progress,
}

impl State {
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

    /// Leaves a request to itself, which `_left` is leave to do. Nobody is told of its end.
    fn leave<Left>(&mut self, entry: EntryId, _left: &Left) {
        if let Entry::InFlight(slot) = &mut self.entries[entry] {
            slot.owner = Completion::Nobody;
        }
    }

    /// Whether there are slots that are neither free nor in flight: somebody prepares
    /// requests, or ends them.
    pub(super) fn has_slots_in_hand(&self) -> bool {
        let in_flight = usize::from(self.ring.in_flight());
        self.free.len() + in_flight < self.entries.len()
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
    /// For what may take as long as others like, so that the device's end must not wait for it.
    pub(super) work: Arc<WorkQueue>,
    used_ring: Arc<SharedCoherent<u32>>,
    /// Whether a notification was put off to the end of a batch.
    held: Atomic<bool>,
    /// Whether it is one of [`WaitStrategy::Interrupt`].
    held_only: Atomic<bool>,
    /// How many bytes the other requests move for which it was put off.
    held_bytes: Atomic<usize>,
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
    /// Whether completions are looked for, and no interrupts are wanted.
    pub(crate) polled: bool,
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
                polling: Polling::new(),
                stats,
                pollers,
                work: module::work_queue()?,
                used_ring: ring.used_ring().clone(),
                held: Atomic::new(false),
                held_only: Atomic::new(false),
                held_bytes: Atomic::new(0),
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
    pub(crate) fn index(&self) -> u16 {
        self.index
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

    /// Takes up to `count` slots, if nobody waits for one; exactly as many if `all`. May
    /// sleep for memory, but not for a slot.
    ///
    /// `EAGAIN` where that are too few; the error of [`Self::stop`] after that.
    pub(crate) fn try_acquire_several<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
        count: usize,
        all: bool,
    ) -> Result<KVec<AcquiredSlot<'a>>> {
        let mut slots = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        let free = if state.frozen {
            0
        } else {
            state.free.len().min(count)
        };
        if state.waiting > 0 || free == 0 || all && free < count {
            return Err(EAGAIN);
        }
        for _ in 0..free {
            if let Some(slot) = state.free.pop() {
                // There is room for all of them.
                let _ = slots.push_within_capacity(self.acquired(device, slot));
            }
        }
        Ok(slots)
    }

    /// Takes a slot, after all who came before. Sleeps. On a polled queue
    /// [`Self::acquire_polled`] is the one.
    ///
    /// `ERESTARTSYS` or `EINTR` after one of these `signals`, the error of [`Self::stop`]
    /// after that.
    pub(crate) fn acquire<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
        signals: Signals,
    ) -> Result<AcquiredSlot<'a>> {
        self.acquire_polled(device, signals, |_| {})
    }

    /// As [`Self::acquire`], and ends what the device has done where nobody else may do so:
    /// those who have submitted polled requests need not come back for them. `note` is told
    /// what was seen. While somebody waits, the queue has interrupts.
    pub(crate) fn acquire_polled<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
        signals: Signals,
        note: impl Fn(&Reaped),
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
            if self.polled && state.ring.enable_interrupts() {
                // No interrupt may come for what is there already.
                drop(state);
                note(&self.reap(device));
                state = self.state.lock();
                if state.failed.is_none() {
                    if let Some(slot) = state.take_free() {
                        break Ok(slot);
                    }
                }
                continue;
            }
            let waited = self.slot_freed.wait(signals, None, || drop(state));
            state = self.state.lock();
            if let Err(error) = waited {
                break Err(error);
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

    /// Waits until the DMA layer may have room again for what it had none for: a request
    /// has ended, or some time has passed. Sleeps. Whoever waits must hold nothing that is
    /// mapped. Errors as of [`Self::acquire`].
    pub(crate) fn wait_for_dma_room(&self, signals: Signals) -> Result {
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        state.waiting_for_dma += 1;
        let timeout = msecs_to_jiffies(DMA_ROOM_MS);
        let waited = self.dma_freed.wait(signals, Some(timeout), || drop(state));
        state = self.state.lock();
        state.waiting_for_dma -= 1;
        match state.failed {
            Some(error) => Err(error),
            None => waited,
        }
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
        if state.waiting_for_dma > 0 {
            self.dma_freed.notify_all();
        }
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
    pub(crate) fn submit(&self, requests: &mut KVec<Request<'_>>) -> Result {
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        let count = requests.len() as u64;
        let mut segments = 0;
        for request in requests.drain_all() {
            let slot = request.into_inner();
            segments += slot.segments() as u64;
            state.put_in_flight(slot);
        }
        state.ring.publish();
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
        let wanted = self.state.lock().ring.wants_notification();
        if wanted {
            self.ring_doorbell(transport, device);
        }
    }

    pub(super) fn ring_doorbell(&self, transport: &Transport, device: &pci::Device<Bound>) {
        self.stats.doorbell();
        // The address was checked when the queue was enabled, so this does not fail.
        let _ = transport.ring(device, self.doorbell);
    }

    /// Puts the notification off until somebody asks [`Self::take_deferred_kick`].
    pub(crate) fn defer_kick(&self, effort: WaitStrategy) {
        match effort {
            WaitStrategy::Interrupt => self.held_only.store(true, Relaxed),
            WaitStrategy::BusyPoll(bytes) => self.held_bytes.add(bytes, Relaxed),
        }
        self.held.store(true, Release);
    }

    /// Whether the notification was put off, and it is now for the caller to do.
    ///
    /// A flag is enough: whoever puts a notification off has a call of this function
    /// ahead, so at the latest the last of them finds everything submitted.
    pub(crate) fn take_deferred_kick(&self) -> Option<WaitStrategy> {
        if !self.held.xchg(false, Full) {
            return None;
        }
        let bytes = self.held_bytes.xchg(0, Relaxed);
        Some(match self.held_only.xchg(false, Relaxed) {
            true => WaitStrategy::Interrupt,
            false => WaitStrategy::BusyPoll(bytes),
        })
    }

    /// As [`Self::submit`], for one request, of which `caller` becomes the owner. On an
    /// error the caller comes back, and the request was given up.
    pub(crate) fn submit_one<C: Caller>(
        &self,
        request: Request<'_>,
        caller: C,
    ) -> Result<C::IoReturn, (Error, C)> {
        let mut state = self.state.lock();
        let answer = self.submit_locked(&mut state, request, caller);
        // Not under the lock: the request goes back to it.
        drop(state);
        answer.map_err(|(error, _request, caller)| (error, caller))
    }

    /// Puts one request in flight and publishes it. On an error all comes back.
    #[inline(always)]
    pub(super) fn submit_locked<'a, C: Caller>(
        &self,
        state: &mut State,
        request: Request<'a>,
        caller: C,
    ) -> Result<C::IoReturn, (Error, Request<'a>, C)> {
        if let Some(error) = state.failed {
            return Err((error, request, caller));
        }
        let mut slot = request.into_inner();
        let (owner, answer) = caller.queue();
        slot.owner = owner;
        self.count(1, slot.segments() as u64);
        state.put_in_flight(slot);
        state.ring.publish();
        Ok(answer)
    }

    /// Gives a request to the device and returns its slot when it has ended: looks for
    /// that for `limit`, and tells `note` what was seen, then waits. Sleeps.
    ///
    /// `wait` returns early where the request can be left to itself: then it goes on, and
    /// lets go of its pages by itself. Its error is the result, and only that makes it
    /// possible to leave.
    fn execute<'a, Left: Into<Error>>(
        &'a self,
        transport: &Transport,
        device: &'a pci::Device<Bound>,
        request: Request<'a>,
        limit: Option<Delta>,
        note: impl FnOnce(&Reaped),
        wait: impl Fn(&KernelCompletion) -> Result<(), Left>,
    ) -> Result<KBox<Slot>> {
        let entry = request.slot().entry();
        let waiter = request.slot().waiter().clone();
        // A killed predecessor may have left a wake-up behind.
        waiter.reinit();
        let ended = match limit {
            Some(limit) => {
                let (seen, polled) = self
                    .submit_and_poll(transport, device, request, limit, Waiting)
                    .map_err(|(error, Waiting)| error)?;
                note(&seen);
                match polled {
                    Polled::Completed(slot, Waiting) => Some(slot),
                    Polled::Queued(()) => None,
                }
            }
            None => {
                self.submit_one(request, Waiting)
                    .map_err(|(error, Waiting)| error)?;
                self.notify(transport, device);
                None
            }
        };
        if let Some(slot) = ended {
            return Ok(slot);
        }
        loop {
            let waited = wait(&waiter);
            let mut state = self.state.lock();
            if let Some(ended) = state.take_done(entry) {
                return ended;
            }
            if let Err(left) = waited {
                state.leave(entry, &left);
                return Err(left.into());
            }
        }
    }

    /// Executes a transfer and waits for its end. Sleeps. Errors as of the transfer;
    /// `EINTR` when killed in the meantime, if the request owns its pages.
    ///
    /// Returns pages as well that are to be dropped once the caller has left the device.
    pub(crate) fn execute_transfer<'a, O: Ownership>(
        &'a self,
        transport: &Transport,
        device: &'a pci::Device<Bound>,
        request: Transfer<'a, O>,
        limit: Option<Delta>,
        note: impl FnOnce(&Reaped),
    ) -> (Result<usize>, Option<CleanedPages>) {
        match self.execute(
            transport,
            device,
            request.for_caller(),
            limit,
            note,
            O::wait,
        ) {
            Ok(slot) => {
                let outcome = slot.transfer_outcome();
                (outcome.into_result(), self.release(device, slot))
            }
            Err(error) => (Err(error), None),
        }
    }

    /// Executes a command and waits for its end, at most `timeout` if there is one.
    /// Sleeps. Returns the value of the command.
    pub(crate) fn execute_command<'a>(
        &'a self,
        transport: &Transport,
        device: &'a pci::Device<Bound>,
        command: Command<'a>,
        timeout: Option<Jiffies>,
    ) -> Result<u64> {
        let wait = |waiter: &KernelCompletion| match timeout {
            Some(timeout) => waiter.wait_timeout(timeout),
            None => waiter.wait_killable(),
        };
        let request = command.for_caller();
        let slot = self.execute(transport, device, request, None, |_| {}, wait)?;
        let outcome = slot.command_outcome();
        // It has no pages.
        drop(self.release(device, slot));
        outcome
    }
}
