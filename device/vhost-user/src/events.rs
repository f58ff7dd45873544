// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events that wait for a buffer of the driver.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringbar_spec::{Event, QueueFault};
use tracing::warn;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::ring::Ring;

/// A queue that broke.
struct Pending {
    queue: u16,
    fault: QueueFault,
    ring: Ring,
}

impl Pending {
    const fn event(&self) -> Event {
        Event::QueueBroken {
            queue: self.queue,
            fault: self.fault,
        }
    }
}

/// Events on their way to the driver, oldest first. Any thread adds to them; the
/// worker of the event queue is woken and takes them off.
pub(crate) struct PendingEvents {
    events: Mutex<VecDeque<Pending>>,
    limit: usize,
    wake: EventFd,
}

impl PendingEvents {
    /// For a device with `queues` queues.
    pub(crate) fn new(queues: usize) -> io::Result<Self> {
        Ok(Self {
            // Each queue can be broken once at a time.
            events: Mutex::new(VecDeque::with_capacity(queues)),
            limit: queues,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        // A queue of plain values is whole whatever happened.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable while there may be something new.
    pub(crate) const fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Reports a broken queue.
    pub(crate) fn queue_broken(&self, queue: u16, fault: QueueFault, ring: &Ring) {
        {
            let mut events = self.events();
            // What was pending for the queue is of a life that is over.
            events.retain(|pending| pending.queue != queue && pending.ring.is_broken());
            if events.len() < self.limit {
                events.push_back(Pending {
                    queue,
                    fault,
                    ring: ring.clone(),
                });
            }
        }
        if let Err(error) = self.wake.write(1) {
            warn!(%error, "cannot wake the event queue");
        }
    }

    /// The oldest event that is still true, left in place.
    pub(crate) fn front(&self) -> Option<Event> {
        let mut events = self.events();
        events.retain(|pending| pending.ring.is_broken());
        events.front().map(Pending::event)
    }

    /// Takes off `event` if it is still the oldest.
    pub(crate) fn delivered(&self, event: Event) {
        let mut events = self.events();
        if events.front().map(Pending::event) == Some(event) {
            events.pop_front();
        }
    }

    /// Forgets everything: the device was reset.
    pub(crate) fn clear(&self) {
        self.events().clear();
    }
}
