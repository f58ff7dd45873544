// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events that wait for a buffer of the driver.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringbar_spec::{Event, QueueFault};
use tracing::warn;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::ring::Ring;

/// A queue that broke.
struct Broken {
    queue: u16,
    fault: QueueFault,
    ring: Ring,
}

impl Broken {
    const fn event(&self) -> Event {
        Event::QueueBroken {
            queue: self.queue,
            fault: self.fault,
        }
    }
}

struct Pending {
    broken: VecDeque<Broken>,
    /// The latest of all.
    capacity: Option<u64>,
}

impl Pending {
    /// The oldest event that is still true; what stops I/O before what does not.
    fn front(&mut self) -> Option<Event> {
        self.broken.retain(|broken| broken.ring.is_broken());
        let capacity = self.capacity;
        let changed = || capacity.map(|capacity| Event::CapacityChanged { capacity });
        self.broken.front().map(Broken::event).or_else(changed)
    }
}

/// Events on their way to the driver, oldest first. Any thread adds to them; the
/// worker of the event queue is woken and takes them off.
pub(crate) struct PendingEvents {
    pending: Mutex<Pending>,
    limit: usize,
    wake: EventFd,
}

impl fmt::Debug for PendingEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingEvents").finish_non_exhaustive()
    }
}

impl PendingEvents {
    /// For a device with `queues` queues.
    pub(crate) fn new(queues: usize) -> io::Result<Self> {
        Ok(Self {
            // Each queue can be broken once at a time.
            pending: Mutex::new(Pending {
                broken: VecDeque::with_capacity(queues),
                capacity: None,
            }),
            limit: queues,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Plain values are whole whatever happened.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable while there may be something new.
    pub(crate) const fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Reports a broken queue.
    pub(crate) fn queue_broken(&self, queue: u16, fault: QueueFault, ring: &Ring) {
        {
            let broken = &mut self.pending().broken;
            // What was pending for the queue is of a life that is over.
            broken.retain(|broken| broken.queue != queue && broken.ring.is_broken());
            if broken.len() < self.limit {
                broken.push_back(Broken {
                    queue,
                    fault,
                    ring: ring.clone(),
                });
            }
        }
        self.notify();
    }

    /// Reports that the device memory has another size.
    pub(crate) fn capacity_changed(&self, capacity: u64) {
        self.pending().capacity = Some(capacity);
        self.notify();
    }

    fn notify(&self) {
        if let Err(error) = self.wake.write(1) {
            warn!(%error, "cannot wake the event queue");
        }
    }

    /// The oldest event that is still true, left in place.
    pub(crate) fn front(&self) -> Option<Event> {
        self.pending().front()
    }

    /// Takes off `event` if it is still the oldest.
    pub(crate) fn delivered(&self, event: Event) {
        let mut pending = self.pending();
        if pending.front() == Some(event) {
            match event {
                Event::QueueBroken { .. } => drop(pending.broken.pop_front()),
                Event::CapacityChanged { .. } => pending.capacity = None,
            }
        }
    }

    /// Forgets everything: the device was reset, and whoever starts it reads the
    /// configuration first.
    pub(crate) fn clear(&self) {
        let mut pending = self.pending();
        pending.broken.clear();
        pending.capacity = None;
    }
}

#[cfg(test)]
mod tests {
    use vhost_user_backend::VringT;
    use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

    use super::*;

    #[test]
    fn a_reset_leaves_nothing_to_tell() {
        let events = PendingEvents::new(3).unwrap();
        let ring = Ring::new(GuestMemoryAtomic::new(GuestMemoryMmap::new()), 256).unwrap();
        ring.set_broken();
        events.queue_broken(2, QueueFault::Chain, &ring);
        events.capacity_changed(4096);
        events.clear();
        assert_eq!(events.front(), None);
    }
}
