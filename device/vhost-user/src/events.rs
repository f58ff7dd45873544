// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events that wait for a buffer of the driver.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringbar_spec::Event;
use tracing::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Events on their way to the driver, oldest first. Any thread adds to them; the
/// worker of the event queue is woken and takes them off.
#[derive(Debug)]
pub(crate) struct PendingEvents {
    events: Mutex<VecDeque<Event>>,
    limit: usize,
    wake: EventFd,
}

impl PendingEvents {
    /// With room for `limit` events: one for each thing that can happen once.
    pub(crate) fn new(limit: usize) -> io::Result<Self> {
        Ok(Self {
            events: Mutex::new(VecDeque::with_capacity(limit)),
            limit,
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // A queue of plain values is whole whatever happened.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable while there may be something new.
    pub(crate) const fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Adds an event. When a driver takes none, the oldest go.
    pub(crate) fn push(&self, event: Event) {
        {
            let mut events = self.events();
            if events.len() == self.limit {
                events.pop_front();
            }
            events.push_back(event);
        }
        if let Err(error) = self.wake.write(1) {
            warn!(%error, "cannot wake the event queue");
        }
    }

    /// The oldest event, left in place.
    pub(crate) fn front(&self) -> Option<Event> {
        self.events().front().copied()
    }

    /// Takes off `event` if it is still the oldest.
    pub(crate) fn delivered(&self, event: Event) {
        let mut events = self.events();
        if events.front() == Some(&event) {
            events.pop_front();
        }
    }

    /// Forgets everything: the driver has reset the device.
    pub(crate) fn clear(&self) {
        self.events().clear();
    }
}
