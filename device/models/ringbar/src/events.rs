// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events for the driver, and the buffers of the event queue.
//!
//! An event is pending until the driver can read it. Buffers wait here for events, and pending
//! events for buffers.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ringbar_engine::Fault;
use ringbar_engine::model::ConfigListener;
use ringbar_spec::{Event, QueueFault};
use vm_memory::{Bytes, GuestMemory};

use crate::response::{Request, Response, Submission};

/// Greatest number of descriptors of a buffer in the event queue.
pub(crate) const MAX_BUFFERS: usize = Event::SIZE;

#[derive(Clone, Copy, Debug)]
struct Pending {
    event: Event,
    /// Whether a buffer was completed with it that the worker has not used yet.
    in_flight: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Events of broken queues, at most one for each queue, and after them at most one of the
    /// capacity.
    pending: VecDeque<Pending>,
    /// Buffers of the driver, oldest first.
    buffers: VecDeque<Request>,
}

impl State {
    /// Takes the first event that is in no buffer yet.
    fn take_undelivered(&mut self) -> Option<Event> {
        let pending = self.pending.iter_mut().find(|pending| !pending.in_flight)?;
        pending.in_flight = true;
        Some(pending.event)
    }

    /// Removes outdated events, also those that are in a buffer already.
    fn remove_outdated(&mut self, mut is_outdated: impl FnMut(&Event) -> bool) {
        self.pending.retain(|pending| !is_outdated(&pending.event));
    }
}

/// Pending events of one connection. Any thread can add one.
#[derive(Default)]
pub(crate) struct Events {
    state: Mutex<State>,
    /// Announces a new capacity to a driver that does not wait for events, too.
    config_listener: OnceLock<ConfigListener>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.state).finish()
    }
}

impl Events {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid after each statement that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the event of a broken queue.
    pub(crate) fn queue_broken(&self, queue: u16, fault: QueueFault) {
        let event = Event::QueueBroken { queue, fault };
        self.add_event(event, |state, pending| {
            state.remove_outdated(|event| is_queue_broken(event, queue));
            let is_broken = |pending: &Pending| matches!(pending.event, Event::QueueBroken { .. });
            let at = state.pending.iter().take_while(|p| is_broken(p)).count();
            state.pending.insert(at, pending);
        });
    }

    /// Removes the event of a broken queue that was started again.
    pub(crate) fn queue_started(&self, queue: u16) {
        self.state()
            .remove_outdated(|event| is_queue_broken(event, queue));
    }

    /// Adds the event of a new capacity, in place of an earlier one.
    pub(crate) fn capacity_changed(&self, capacity: u64) {
        let event = Event::CapacityChanged { capacity };
        self.add_event(event, |state, pending| {
            // Only the latest capacity is of use to the driver.
            state.remove_outdated(|event| matches!(event, Event::CapacityChanged { .. }));
            state.pending.push_back(pending);
        });
        if let Some(listener) = self.config_listener.get() {
            listener();
        }
    }

    /// Has `listener` called after each change of the capacity. The first one counts.
    pub(crate) fn set_config_listener(&self, listener: ConfigListener) {
        let _ = self.config_listener.set(listener);
    }

    fn add_event(&self, event: Event, put: impl FnOnce(&mut State, Pending)) {
        let mut state = self.state();
        let in_flight = false;
        put(&mut state, Pending { event, in_flight });
        while let Some(buffer) = state.buffers.pop_front() {
            match state.take_undelivered() {
                Some(event) => buffer.complete(Response::Event(event)),
                None => {
                    state.buffers.push_front(buffer);
                    return;
                }
            }
        }
    }

    /// Takes a buffer that the driver made available.
    pub(crate) fn add_buffer(&self, buffer: Request) -> Submission {
        let mut state = self.state();
        match state.take_undelivered() {
            Some(event) => Submission::Completed(buffer, Response::Event(event)),
            None => {
                state.buffers.push_back(buffer);
                Submission::Deferred
            }
        }
    }

    /// Removes `event`, which the worker has written into a buffer.
    pub(crate) fn delivered(&self, event: Event) {
        let pending = &mut self.state().pending;
        let delivered = |pending: &Pending| pending.in_flight && pending.event == event;
        if let Some(at) = pending.iter().position(delivered) {
            pending.remove(at);
        }
    }

    /// Called when the event queue was stopped. Its buffers belong to the driver again, and
    /// events that were in buffers become deliverable again.
    pub(crate) fn queue_stopped(&self) {
        let buffers = {
            let mut state = self.state();
            for pending in &mut state.pending {
                pending.in_flight = false;
            }
            std::mem::take(&mut state.buffers)
        };
        // Without the lock: dropping a request notifies its worker.
        drop(buffers);
    }

    /// Removes all events after a reset: a driver that starts the device reads its
    /// configuration.
    pub(crate) fn clear(&self) {
        self.state().pending.clear();
    }

    #[cfg(test)]
    pub(crate) fn front(&self) -> Option<Event> {
        self.state().pending.front().map(|pending| pending.event)
    }
}

/// Whether an event says that queue `number` is broken.
fn is_queue_broken(event: &Event, number: u16) -> bool {
    matches!(event, Event::QueueBroken { queue, .. } if *queue == number)
}

/// Writes `event` into a buffer of the driver; returns the length for the used ring.
///
/// # Errors
///
/// [`Fault::NoAnswer`] for a buffer with device-readable parts or fewer than
/// [`Event::SIZE`] bytes, and [`Fault::Address`] for one outside guest memory.
pub(crate) fn write<M: GuestMemory>(mem: &M, buffer: &Request, event: Event) -> Result<u32, Fault> {
    let bytes = event.to_bytes();
    let mut rest = &bytes[..];
    for buffer in buffer.buffers() {
        if !buffer.writable {
            return Err(Fault::NoAnswer);
        }
        let (chunk, after) = rest.split_at(rest.len().min(buffer.len as usize));
        mem.write_slice(chunk, buffer.addr)
            .map_err(|_| Fault::Address)?;
        rest = after;
    }
    if !rest.is_empty() {
        return Err(Fault::NoAnswer);
    }
    Ok(Event::SIZE as u32)
}

/// The fault of a queue as an event reports it to the driver.
pub(crate) const fn queue_fault(fault: Fault) -> QueueFault {
    match fault {
        Fault::Chain => QueueFault::Chain,
        Fault::Address => QueueFault::Address,
        Fault::NoAnswer => QueueFault::NoStatus,
        Fault::Ring => QueueFault::Ring,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_clears_pending_events() {
        let events = Events::default();
        events.queue_broken(2, QueueFault::Chain);
        events.capacity_changed(4096);
        events.clear();
        assert_eq!(events.front(), None);
    }

    #[test]
    fn broken_queues_are_reported_first_in_order_and_once() {
        let events = Events::default();
        events.capacity_changed(4096);
        events.capacity_changed(8192);
        events.queue_broken(3, QueueFault::Chain);
        events.queue_broken(2, QueueFault::Chain);
        events.queue_broken(2, QueueFault::Ring);
        let take = || events.state().take_undelivered();
        let broken = |queue, fault| Event::QueueBroken { queue, fault };
        assert_eq!(take(), Some(broken(3, QueueFault::Chain)));
        let broken = broken(2, QueueFault::Ring);
        let changed = Event::CapacityChanged { capacity: 8192 };
        assert_eq!(
            [take(), take(), take()],
            [Some(broken), Some(changed), None]
        );
        events.delivered(Event::QueueBroken {
            queue: 3,
            fault: QueueFault::Chain,
        });
        events.delivered(broken);
        // The buffer for the other did not arrive.
        events.queue_stopped();
        assert_eq!([take(), take()], [Some(changed), None]);
    }

    #[test]
    fn restarted_queue_is_not_reported_as_broken() {
        let events = Events::default();
        events.queue_broken(2, QueueFault::Chain);
        events.queue_broken(3, QueueFault::Chain);
        events.queue_started(2);
        let fault = QueueFault::Chain;
        assert_eq!(events.front(), Some(Event::QueueBroken { queue: 3, fault }));
    }
}
