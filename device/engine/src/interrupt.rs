// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Notifications from the device to the driver.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

#[cfg(all(test, loom))]
use loom::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(all(test, not(loom)))]
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, write};
use tracing::warn;

use crate::injection::Injection;

/// Where the interrupts of a queue go.
pub trait Interrupt: Send {
    /// Raises the interrupt. Never blocks; several that nobody has taken yet may become one.
    fn raise(&self) -> io::Result<()>;
}

/// An eventfd that another process has sent for interrupts.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// For a descriptor that may be any file: it is made non-blocking, because a write to a full
    /// eventfd must not block a worker.
    pub fn new(descriptor: impl Into<OwnedFd>) -> Self {
        let descriptor = descriptor.into();
        if let Err(error) = set_nonblocking(&descriptor) {
            warn!(%error, "cannot make the descriptor of an interrupt non-blocking");
        }
        Self(descriptor)
    }
}

impl Interrupt for EventFd {
    fn raise(&self) -> io::Result<()> {
        match write(&self.0, &1u64.to_ne_bytes()) {
            // An eventfd that is full of interrupts that nobody has taken yet is raised.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Makes a descriptor non-blocking, as QEMU's are already.
pub fn set_nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(descriptor)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(descriptor, flags | OFlags::NONBLOCK)?;
    }
    Ok(())
}

/// An interrupt whose target comes and goes while it is raised.
///
/// ```text
///            set(Some)
///   absent ────────────► present: raise() goes out
///     │  ▲                  │
///     │  └──── set(None) ───┘
///     ▼ raise()
///   absent and pending: set(Some) raises
/// ```
#[derive(Default)]
pub struct InterruptSlot {
    state: Mutex<State>,
    /// The queue to which the interrupt belongs, and what may lose it.
    queue: Option<(u16, Injection)>,
}

#[derive(Default)]
struct State {
    target: Option<Box<dyn Interrupt>>,
    /// Raised while there was no target.
    pending: bool,
}

impl fmt::Debug for InterruptSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptSlot").finish_non_exhaustive()
    }
}

impl InterruptSlot {
    /// For a queue with injected faults.
    pub(crate) fn of_queue(queue: u16, faults: Injection) -> Self {
        Self {
            state: Mutex::default(),
            queue: Some((queue, faults)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the interrupt, or keeps it until there is a target.
    pub fn raise(&self) {
        if let Some((queue, faults)) = &self.queue
            && let Some(injector) = faults.active()
            && injector.drops_interrupt(*queue)
        {
            return;
        }
        let mut state = self.state();
        match &state.target {
            Some(target) => raise(target.as_ref()),
            None => state.pending = true,
        }
    }

    /// Forgets an interrupt that was raised while there was no target.
    pub fn forget(&self) {
        self.state().pending = false;
    }

    /// Replaces the target. One that comes after an interrupt is raised at once.
    pub fn set(&self, target: Option<Box<dyn Interrupt>>) {
        let mut state = self.state();
        if let Some(target) = &target
            && std::mem::take(&mut state.pending)
        {
            raise(target.as_ref());
        }
        state.target = target;
    }
}

fn raise(target: &dyn Interrupt) {
    if let Err(error) = target.raise() {
        warn!(%error, "cannot interrupt the driver");
    }
}

/// A target that counts, for tests and models.
#[cfg(test)]
pub(crate) struct Count(pub(crate) Arc<AtomicU32>);

#[cfg(test)]
impl Interrupt for Count {
    fn raise(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    /// Whatever the transport does with the target meanwhile, an interrupt reaches one.
    #[test]
    fn interrupts_are_not_lost_between_targets() {
        loom::model(|| {
            let slot = Arc::new(InterruptSlot::default());
            let count = Arc::new(AtomicU32::new(0));
            slot.set(Some(Box::new(Count(count.clone()))));
            let device = {
                let slot = slot.clone();
                thread::spawn(move || slot.raise())
            };
            slot.set(None);
            slot.set(Some(Box::new(Count(count.clone()))));
            device.join().unwrap();
            assert_eq!(count.load(Ordering::Relaxed), 1);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::read;

    use super::*;

    #[test]
    fn a_full_eventfd_does_not_block() {
        let ours = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let event = EventFd::new(ours.try_clone().unwrap());
        let take = || {
            let mut bytes = [0; 8];
            read(&ours, &mut bytes).unwrap();
            u64::from_ne_bytes(bytes)
        };
        // No room for one more.
        write(&ours, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.raise().unwrap();
        assert_eq!(take(), u64::MAX - 1);
        event.raise().unwrap();
        assert_eq!(take(), 1);
    }

    #[test]
    fn interrupts_without_a_target_are_kept_as_one() {
        let (slot, count) = (InterruptSlot::default(), Arc::new(AtomicU32::new(0)));
        slot.raise();
        slot.raise();
        slot.set(Some(Box::new(Count(Arc::clone(&count)))));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        slot.raise();
        assert_eq!(count.load(Ordering::Relaxed), 2);
        slot.set(None);
        slot.set(Some(Box::new(Count(Arc::clone(&count)))));
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
