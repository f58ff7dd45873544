// SPDX-License-Identifier: GPL-2.0

//! The event queue: messages of the device to the driver.

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
            Message,
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

/// Number of buffers that the device has. Events are rare.
const BUFFERS: u16 = 16;

/// Greatest number of events in a [`WINDOW`]. A device that sends more keeps a CPU busy, because
/// one interrupt handles all of them. An administrator's script that resizes the device sends
/// fewer. The event log has space for twice as many.
const MAX_EVENTS: usize = 256;

/// Time for which events are counted.
const WINDOW: Delta = Delta::from_secs(1);

const EVENT_WORDS: usize = Event::SIZE / 8;

struct State {
    ring: Ring,
    buffers: Coherent<[u64]>,
    /// Whether the device has the buffer.
    offered: PerEntry<bool>,
    /// Whether the device lacks one of the buffers.
    missing: bool,
    /// Whether the device has been started.
    started: bool,
    /// Whether the device has broken this queue, or has reported another queue as broken.
    broken: bool,
    /// Number of events since `since`.
    count: usize,
    since: Instant<Monotonic>,
}

/// The event queue.
#[pin_data]
pub(crate) struct EventQueue {
    doorbell: Doorbell,
    message: Message,
    #[pin]
    state: SpinLockIrq<State>,
}

/// The contents of a used buffer.
pub(crate) enum Received {
    /// An event.
    Event(Event),
    /// Bytes that are no event; the number of the buffer.
    Unknown(u16),
    /// No more events will come: the ring is inconsistent, the device used a buffer that it did not
    /// have, or it sent too many events.
    Broken,
}

impl EventQueue {
    /// Allocates the queue and enables it in the device. May sleep.
    pub(crate) fn new(
        transport: &Transport,
        device: &pci::Device<Bound>,
        index: u16,
        message: Message,
        event_idx: bool,
    ) -> Result<Arc<Self>> {
        let size = BUFFERS.min(transport.queue_max_size(device, index)?);
        let ring = Ring::new(device, size, event_idx)?;
        let doorbell = transport.enable_queue(device, index, &ring.areas(), message)?;
        let buffers =
            Coherent::zeroed_slice(device.as_ref(), EVENT_WORDS * usize::from(size), GFP_KERNEL)?;
        let offered = PerEntry::new(&ring, |_| Ok(false))?;
        Arc::pin_init(
            pin_init!(Self {
                doorbell,
                message,
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

    /// Takes no more events, and makes no more buffers available to the device: the device is about
    /// to be reset. Any context.
    pub(crate) fn stop(&self) {
        self.state.lock().started = false;
    }

    /// Sets the queue up, empty, in a device that was reset. Sleeps. To be called after
    /// [`Self::stop`].
    ///
    /// `EIO` if the device no longer has the queue as before.
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
        transport.enable_queue_again(device, self.doorbell, &areas, self.message)
    }

    /// Makes all buffers available to the device, after it was started.
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

    /// Takes the next event, and passes it to `handle`, which must not sleep. Returns whether there
    /// may be more events. The driver makes the buffer available again once it has taken all used
    /// entries: until then the device cannot have used the buffer again. While the device is not
    /// started, there is no event: an interrupt handler may still run, and if it made buffers
    /// available and sent the doorbell before the start, no later doorbell would announce them. Any
    /// context.
    ///
    /// The interrupt handler and the watchdog both take events. The lock is held until `handle`
    /// returns, so events have their effect in the order in which the device has sent them: else a
    /// thread that is preempted with an old size would set it after a later one, and nothing would
    /// correct that. For the same reason no event has an effect after [`Self::stop`], when a start
    /// may have set the size already.
    pub(crate) fn receive(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        handle: impl FnOnce(Received),
    ) -> bool {
        let mut state = self.state.lock();
        if !state.started {
            return false;
        }
        let received = loop {
            match state.ring.pop() {
                Ok(Some(used)) => break state.take(used.entry),
                Ok(None) => {
                    if state.offer_all() && transport.ring(device, self.doorbell).is_err() {
                        break state.mark_broken();
                    }
                    if !state.ring.enable_interrupts() {
                        return false;
                    }
                }
                Err(_) => break state.mark_broken(),
            }
        };
        let more = !matches!(received, Received::Broken);
        handle(received);
        more
    }

    /// Whether the device is to be taken out of service, because of its use of this queue or of an
    /// event that it has sent since the queue was set up. Any context.
    pub(crate) fn is_broken(&self) -> bool {
        self.state.lock().broken
    }
}

impl State {
    fn mark_broken(&mut self) -> Received {
        self.broken = true;
        Received::Broken
    }

    /// Takes the contents of a used buffer, which the device must have had.
    fn take(&mut self, entry: EntryId) -> Received {
        if self.since.elapsed() >= WINDOW {
            (self.count, self.since) = (0, Instant::now());
        }
        self.count += 1;
        if self.count > MAX_EVENTS || !replace(&mut self.offered[entry], false) {
            return self.mark_broken();
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

    /// Makes all buffers available that the device does not have. Returns whether the device
    /// requested a notification of that.
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
