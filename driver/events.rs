// SPDX-License-Identifier: GPL-2.0

//! What the device says unasked, on the event queue.

use crate::{
    abstractions::dma::range::DmaRange,
    layout::Event,
    virtio::{
        reset::Quiesced,
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
    dma::Coherent,
    io::io_read,
    new_spinlock_irq,
    pci,
    prelude::*,
    sync::{
        Arc,
        SpinLockIrq, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// Buffers the device has at hand. Events are rare.
const BUFFERS: u16 = 16;

/// Greatest number of events in a [`WINDOW`]. A device that sends more keeps a CPU busy: one
/// interrupt handles all of them. An administrator's script that resizes the device sends
/// fewer. The event log holds twice as many.
const MAX_EVENTS: usize = 256;

/// In what time events are counted.
const WINDOW: Delta = Delta::from_secs(1);

const EVENT_WORDS: usize = Event::SIZE / 8;

struct State {
    ring: Ring,
    buffers: Coherent<[u64]>,
    /// Whether the device has the buffer.
    offered: PerEntry<bool>,
    /// Whether there is one that it has not.
    missing: bool,
    /// Whether the device has been started.
    started: bool,
    /// Whether the device has broken this queue, or said that it has given up another one.
    broken: bool,
    /// Events since `since`.
    count: usize,
    since: Instant<Monotonic>,
}

/// The event queue.
#[pin_data]
pub(crate) struct EventQueue {
    doorbell: Doorbell,
    vector: u16,
    #[pin]
    state: SpinLockIrq<State>,
}

/// What came out of one used buffer.
pub(crate) enum Received {
    /// An event.
    Event(Event),
    /// Bytes that are no event; the number of the buffer.
    Unknown(u16),
    /// The ring does not hold together, or a buffer was used that the device did not have,
    /// or there are too many: no more events will come.
    Broken,
}

impl EventQueue {
    /// Allocates the queue and enables it in the device. May sleep.
    pub(crate) fn new(
        transport: &Transport,
        device: &pci::Device<Bound>,
        index: u16,
        vector: u16,
        event_idx: bool,
    ) -> Result<Arc<Self>> {
        let size = BUFFERS.min(transport.queue_max_size(device, index)?);
        let ring = Ring::new(device, size, event_idx)?;
        let doorbell = transport.enable_queue(device, index, &ring.areas(), vector)?;
        let buffers =
            Coherent::zeroed_slice(device.as_ref(), EVENT_WORDS * usize::from(size), GFP_KERNEL)?;
        let offered = PerEntry::new(&ring, |_| Ok(false))?;
        Arc::pin_init(
            pin_init!(Self {
                doorbell,
                vector,
                state <- new_spinlock_irq!(State {
                    ring,
                    buffers,
                    offered,
                    missing: true,
                    started: false,
                    broken: false,
                    count: 0,
                    since: Instant::now(),
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes no more events, and gives the device no more buffers: it is about to be reset. Any
    /// context.
    pub(crate) fn stop(&self) {
        self.state.lock().started = false;
    }

    /// Sets the queue up in a device that was reset, empty. Sleeps. To be called after
    /// [`Self::stop`].
    ///
    /// `EIO` where the device does not have the queue as it was.
    pub(crate) fn restart(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        quiesced: &Quiesced,
    ) -> Result {
        let areas = {
            let mut state = self.state.lock();
            state.ring.restart(quiesced);
            for entry in state.ring.entries() {
                state.offered[entry] = false;
            }
            state.missing = true;
            state.broken = false;
            state.count = 0;
            state.ring.areas()
        };
        transport.enable_queue_again(device, self.doorbell, &areas, self.vector)
    }

    /// Gives all buffers to the device, after it was started.
    pub(crate) fn start(&self, transport: &Transport, device: &pci::Device<Bound>) -> Result {
        let notify = {
            let mut state = self.state.lock();
            state.started = true;
            state.offer_all()
        };
        if notify {
            transport.ring(device, self.doorbell)?;
        }
        Ok(())
    }

    /// Takes the next event. Its buffer goes back once all that was used has been taken:
    /// until then the device cannot have used it again. There is none while the device is not
    /// started: an interrupt handler may still be at work, and what it offered and notified of
    /// before the start nobody would notify of again. Any context.
    pub(crate) fn receive(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
    ) -> Option<Received> {
        let mut notify = false;
        let received = {
            let mut state = self.state.lock();
            if !state.started {
                return None;
            }
            loop {
                match state.ring.pop() {
                    Ok(Some(used)) => break Some(state.take(used.entry)),
                    Ok(None) => {
                        notify |= state.offer_all();
                        if !state.ring.enable_interrupts() {
                            break None;
                        }
                    }
                    Err(_) => break Some(state.give_up()),
                }
            }
        };
        if notify && transport.ring(device, self.doorbell).is_err() {
            return Some(self.state.lock().give_up());
        }
        received
    }

    /// Whether the device is to be taken out of service for what it did or said here since it was
    /// set up. Any context.
    pub(crate) fn is_broken(&self) -> bool {
        self.state.lock().broken
    }
}

impl State {
    fn give_up(&mut self) -> Received {
        self.broken = true;
        Received::Broken
    }

    /// What came out of a used buffer, which the device must have had.
    fn take(&mut self, entry: EntryId) -> Received {
        if self.since.elapsed() >= WINDOW {
            (self.count, self.since) = (0, Instant::now());
        }
        self.count += 1;
        if self.count > MAX_EVENTS || !replace(&mut self.offered[entry], false) {
            return self.give_up();
        }
        self.missing = true;
        match self.event(entry) {
            Some(event) => {
                self.broken |= matches!(event, Event::QueueBroken { .. });
                Received::Event(event)
            }
            None => Received::Unknown(entry.number()),
        }
    }

    /// Gives the device all buffers that it does not have. Returns whether it wants to be
    /// notified of that.
    fn offer_all(&mut self) -> bool {
        if !replace(&mut self.missing, false) {
            return false;
        }
        for entry in self.ring.entries() {
            if !self.offered[entry] {
                self.offer(entry);
            }
        }
        self.ring.publish();
        self.ring.wants_notification()
    }

    fn offer(&mut self, entry: EntryId) {
        let start = Event::SIZE * usize::from(entry.number());
        let buffer = DmaRange::of_coherent(&self.buffers, start..start + Event::SIZE, true);
        self.ring.push(entry, buffer, 0);
        self.offered[entry] = true;
    }

    /// The event in a buffer, read once.
    fn event(&self, entry: EntryId) -> Option<Event> {
        let start = EVENT_WORDS * usize::from(entry.number());
        let mut bytes = [0; Event::SIZE];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let word: u64 = io_read!(self.buffers, [panic: start + i]);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Event::parse(&bytes)
    }
}
