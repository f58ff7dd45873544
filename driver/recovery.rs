// SPDX-License-Identifier: GPL-2.0

//! What becomes of a device that broke its word: told to the log, and left to a work item that
//! may sleep.
//!
//! Queues, interrupt handlers and the watchdog say here what they have seen, in any context.
//! The work item then asks [`Recover`], which is the device, to see to it. The queues own the
//! [`Recovery`] of their device, so nobody has to carry what they saw to where it is handled.

use crate::{
    abstractions::task::work::WorkQueue,
    event_log::EventLog,
    uapi, //
};
use core::fmt::Debug;
use kernel::{
    device::Bound,
    impl_has_work,
    new_spinlock_irq,
    new_work,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        SpinLockIrq, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// What the work item of a [`Recovery`] acts on.
pub(crate) trait Recover: Send + Sync {
    /// Takes a device that is broken out of service, and sees to `causes`. Sleeps.
    fn recover(&self, causes: Causes);
}

/// What has happened since the work item ran last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Causes {
    /// A request has been in flight for too long.
    pub(crate) stuck: bool,
    /// The device memory has become smaller.
    pub(crate) shrunk: bool,
}

/// What the work item acts on, and where it runs.
struct Target {
    device: Arc<dyn Recover>,
    work_queue: Arc<WorkQueue>,
}

/// The faults of one device.
#[pin_data]
pub(crate) struct Recovery {
    log: Arc<EventLog>,
    /// Whether there was a message that the device is broken, since it was started last.
    reported: Atomic<bool>,
    stuck: Atomic<bool>,
    shrunk: Atomic<bool>,
    #[pin]
    target: SpinLockIrq<Option<Target>>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Recovery { self.work }
}

impl Recovery {
    /// Of a device that is not there yet: faults are noted until [`Self::attach`]. May sleep.
    pub(crate) fn new(log: Arc<EventLog>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                log,
                reported: Atomic::new(false),
                stuck: Atomic::new(false),
                shrunk: Atomic::new(false),
                target <- new_spinlock_irq!(None),
                work <- new_work!("Recovery::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has `device` see to what happens from now on, on `work_queue`. May sleep.
    pub(crate) fn attach(&self, device: Arc<dyn Recover>, work_queue: Arc<WorkQueue>) {
        let target = Target { device, work_queue };
        let before = self.target.lock().replace(target);
        // Not under the lock.
        drop(before);
    }

    /// Queues no more work: the device is being unbound. What is queued is for the owner of the
    /// work queue to wait for. Sleeps where it drops the last reference to the device.
    pub(crate) fn detach(&self) {
        let target = self.target.lock().take();
        // Not under the lock.
        drop(target);
    }

    /// The device is about to be started anew: of its next fault there will be a message. Any
    /// context.
    pub(crate) fn restarted(&self) {
        self.reported.store(false, Relaxed);
    }

    /// Whether this fault is the first since the device was started.
    fn is_first(&self) -> bool {
        !self.reported.xchg(true, Full)
    }

    /// The device broke queue `index`, by `fault`. Any context.
    #[cold]
    pub(crate) fn queue_broken(
        self: &Arc<Self>,
        device: &pci::Device<Bound>,
        index: u16,
        fault: impl Debug,
    ) {
        self.log.record(uapi::EVENT_QUEUE_BROKEN, [index.into(), 0]);
        if self.is_first() {
            dev_err!(
                device,
                "the device broke queue {}: {:?}; it is taken out of service\n",
                index,
                fault
            );
        }
        self.schedule();
    }

    /// The device says that the driver broke queue `index`, by `fault`. Any context.
    #[cold]
    pub(crate) fn queue_given_up(
        self: &Arc<Self>,
        device: &pci::Device<Bound>,
        index: u16,
        fault: impl Debug,
    ) {
        self.log.record(uapi::EVENT_QUEUE_BROKEN, [index.into(), 1]);
        if self.is_first() {
            dev_err!(
                device,
                "the device has given up queue {}: {:?}; it is taken out of service\n",
                index,
                fault
            );
        }
        self.schedule();
    }

    /// The device broke the event queue. Any context.
    #[cold]
    pub(crate) fn event_queue_broken(self: &Arc<Self>, device: &pci::Device<Bound>) {
        if self.is_first() {
            dev_err!(device, "the device broke the event queue\n");
        }
        self.schedule();
    }

    /// More requests have ended than may be ended in an interrupt. Any context.
    #[cold]
    pub(crate) fn reap_later(self: &Arc<Self>) {
        self.schedule();
    }

    /// A request has been in flight for too long. Any context.
    pub(crate) fn stuck(self: &Arc<Self>) {
        self.stuck.store(true, Release);
        self.schedule();
    }

    /// The device memory has become smaller. Any context.
    pub(crate) fn shrunk(self: &Arc<Self>) {
        self.shrunk.store(true, Release);
        self.schedule();
    }

    fn schedule(self: &Arc<Self>) {
        // Under the lock: the work queue may go once it is no longer there.
        if let Some(target) = &*self.target.lock() {
            // Already queued is as good: it has not begun.
            let _ = target.work_queue.enqueue(self.clone());
        }
    }
}

impl WorkItem for Recovery {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let device = match &*this.target.lock() {
            Some(target) => target.device.clone(),
            None => return,
        };
        device.recover(Causes {
            stuck: this.stuck.xchg(false, Full),
            shrunk: this.shrunk.xchg(false, Full),
        });
    }
}
