// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults of queues on demand, for tests of drivers.
//!
//! The engine executes the faults and decides nothing: a [`FaultInjector`] does, which whoever
//! runs the engine gives it with [`Injection`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Number by which an injector knows a fault that lasts.
pub type FaultId = u64;

/// Wakes the workers of an engine.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// What goes wrong with a used entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsedFault {
    /// The entry is written twice.
    Duplicate,
    /// The entry names a descriptor beyond the table; the request is not used.
    BadId,
}

/// Decides which queues misbehave, and when. All methods are called by workers, at the same time,
/// and must not block; each call is one occasion for a fault, to be counted once.
pub trait FaultInjector: fmt::Debug + Send + Sync {
    /// The queue is about to take an available entry. Whether it stalls instead: it takes no more
    /// entries until it is stopped or the fault [does not persist](Self::persists).
    fn stall(&self, queue: u16) -> Option<FaultId>;

    /// The queue is about to write a used entry.
    fn used(&self, queue: u16) -> Option<UsedFault>;

    /// The queue is about to interrupt the driver. Whether the interrupt is lost.
    fn drops_interrupt(&self, queue: u16) -> bool;

    /// The transport stops a queue that was started. Whether the queue goes on for this time
    /// before it stops, unless the fault [does not persist](Self::persists) so long.
    fn hold_stop(&self, queue: u16) -> Option<(FaultId, Duration)>;

    /// Whether a fault that was returned before lasts. After a change the injector calls the waker.
    fn persists(&self, fault: FaultId) -> bool;

    /// Gives the injector what it calls when a fault does not persist any more, on any thread.
    /// Called once by each engine, which replaces the former waker.
    fn set_waker(&self, waker: Waker);
}

/// An injector with a flag beside it. By default there are no faults.
#[derive(Clone, Debug, Default)]
pub struct Injection(Option<(Arc<AtomicBool>, Arc<dyn FaultInjector>)>);

impl Injection {
    /// The engine asks `injector` while `is_active` is set: without faults a request costs relaxed
    /// loads of this flag.
    pub fn new(is_active: Arc<AtomicBool>, injector: Arc<dyn FaultInjector>) -> Self {
        Self(Some((is_active, injector)))
    }

    /// The injector, if there may be faults.
    #[inline]
    pub(crate) fn active(&self) -> Option<&dyn FaultInjector> {
        match &self.0 {
            Some((is_active, injector)) if is_active.load(Ordering::Relaxed) => {
                Some(injector.as_ref())
            }
            _ => None,
        }
    }

    /// Whether a fault lasts.
    pub(crate) fn persists(&self, fault: FaultId) -> bool {
        let Self(injector) = self;
        injector
            .as_ref()
            .is_some_and(|(_, injector)| injector.persists(fault))
    }

    pub(crate) fn set_waker(&self, waker: Waker) {
        if let Self(Some((_, injector))) = self {
            injector.set_waker(waker);
        }
    }
}
