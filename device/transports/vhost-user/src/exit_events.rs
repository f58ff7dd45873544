// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The events that end the workers.
//!
//! The library asks for the event of a worker when it starts it, and never closes the end
//! that the worker waits for. Where it cannot start all of the workers, it forgets those that
//! it has started, which go on. So all events are made before the first worker is, and can
//! be sent by us.
//!
//! ```text
//!  Prepared ── take, by the library ──► Taken ── drop: closed
//!     │
//!     └── drop: both ends closed
//! ```

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// The events of all workers, in their order.
///
/// The library's halves of the workers must be gone when this is dropped.
pub(crate) struct ExitEvents(Mutex<Vec<ExitEvent>>);

enum ExitEvent {
    /// The library has not asked for it yet.
    Prepared(EventConsumer, EventNotifier),
    /// The library has it.
    ///
    /// # Invariants
    ///
    /// The descriptor of the consumer's end is open and ours: the library took it out of the
    /// [`EventConsumer`] by `into_raw_fd`, has a worker's epoll watch it, and does nothing
    /// else with it. Both ends of an event are the same eventfd, so it can be written to.
    Taken(RawFd),
}

impl ExitEvents {
    /// Events for so many workers.
    pub(crate) fn new(workers: usize) -> io::Result<Self> {
        let events = (0..workers).map(|_| {
            new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
                .map(|(consumer, notifier)| ExitEvent::Prepared(consumer, notifier))
        });
        Ok(Self(Mutex::new(events.collect::<io::Result<_>>()?)))
    }

    fn events(&self) -> MutexGuard<'_, Vec<ExitEvent>> {
        // Each change is a single assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ends of a worker's event. They can be had once, by the library.
    pub(crate) fn take(&self, worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        let mut events = self.events();
        let event = events.get_mut(worker)?;
        let ExitEvent::Prepared(consumer, _) = event else {
            return None;
        };
        // INVARIANT: The library takes the descriptor out of the consumer as soon as it has it.
        let taken = ExitEvent::Taken(consumer.as_raw_fd());
        match std::mem::replace(event, taken) {
            ExitEvent::Prepared(consumer, notifier) => Some((consumer, notifier)),
            ExitEvent::Taken(_) => None,
        }
    }

    /// Ends all workers that were started.
    pub(crate) fn send(&self) {
        for event in self.events().iter() {
            let ExitEvent::Taken(fd) = event else {
                continue;
            };
            // SAFETY: By the invariant the descriptor is open, and it stays so as long as the
            // events are borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            if let Err(error) = rustix::io::write(fd, &1u64.to_ne_bytes()) {
                warn!(%error, "cannot tell a worker to end");
            }
        }
    }
}

impl Drop for ExitEvents {
    fn drop(&mut self) {
        for event in self.events().drain(..) {
            if let ExitEvent::Taken(fd) = event {
                // SAFETY: By the invariant the descriptor is ours. The epoll that knew its number
                // has gone with the library's half of the worker, and it is taken off the
                // list here.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
}
