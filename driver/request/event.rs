// SPDX-License-Identifier: GPL-2.0

//! What the device says unasked, on the event queue.

use crate::{
    abstractions::dma::DmaRange,
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
    }, //
};

/// Buffers the device has at hand. Events are rare.
const BUFFERS: u16 = 16;

const EVENT_WORDS: usize = Event::SIZE / 8;

struct State {
    ring: Ring,
    buffers: Coherent<[u64]>,
    /// Whether the device has the buffer.
    offered: PerEntry<bool>,
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
    /// The ring does not hold together, or a buffer was used that the device did not have:
    /// no more events will come.
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
                state <- new_spinlock_irq!(State { ring, buffers, offered }),
            }),
            GFP_KERNEL,
        )
    }

    /// Sets the queue up in a device that was reset, empty. Sleeps.
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
            state.ring.areas()
        };
        transport.enable_queue_again(device, self.doorbell, &areas, self.vector)
    }

    /// Gives all buffers to the device, after it was started.
    pub(crate) fn start(&self, transport: &Transport, device: &pci::Device<Bound>) -> Result {
        let notify = {
            let mut state = self.state.lock();
            for entry in state.ring.entries() {
                state.offer(entry);
            }
            state.ring.publish();
            state.ring.wants_notification()
        };
        if notify {
            transport.ring(device, self.doorbell)?;
        }
        Ok(())
    }

    /// Takes the next event, and gives its buffer back. Any context.
    pub(crate) fn receive(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
    ) -> Option<Received> {
        let (received, notify) = {
            let mut state = self.state.lock();
            let entry = loop {
                match state.ring.pop() {
                    Ok(Some(used)) => break used.entry,
                    Ok(None) if state.ring.enable_interrupts() => {}
                    Ok(None) => return None,
                    Err(_) => return Some(Received::Broken),
                }
            };
            if !replace(&mut state.offered[entry], false) {
                return Some(Received::Broken);
            }
            let received = match state.event(entry) {
                Some(event) => Received::Event(event),
                None => Received::Unknown(entry.number()),
            };
            state.offer(entry);
            state.ring.publish();
            (received, state.ring.wants_notification())
        };
        if notify && transport.ring(device, self.doorbell).is_err() {
            return Some(Received::Broken);
        }
        Some(received)
    }
}

impl State {
    fn offer(&mut self, entry: EntryId) {
        let start = EVENT_WORDS * usize::from(entry.number());
        let buffer = DmaRange::of_coherent(&self.buffers, start..start + EVENT_WORDS, true);
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
