// SPDX-License-Identifier: GPL-2.0

//! Faults of a device: they are logged, and a work item, which may sleep, handles them.
//!
//! Queues, interrupt handlers and the watchdog report faults here, in any context. The work item
//! then calls [`Recover`], which the device implements. The queues own the [`Recovery`] of their
//! device, so no caller has to pass a fault on.

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

/// The target of the work item of a [`Recovery`].
pub(crate) trait Recover: Send + Sync {
    /// Takes a broken device out of service, and handles `causes`. Sleeps.
    fn recover(&self, causes: Causes);
}

/// The events since the last run of the work item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Causes {
    /// A request has been in flight for too long.
    pub(crate) stuck: bool,
    /// The device memory has become smaller.
    pub(crate) shrunk: bool,
    /// The device may have changed its configuration.
    pub(crate) reconfigured: bool,
}

/// The target of the work item, and the work queue on which it runs.
struct Target {
    device: Arc<dyn Recover>,
    work_queue: Arc<WorkQueue>,
}

/// The faults of one device.
#[pin_data]
pub(crate) struct Recovery {
    log: Arc<EventLog>,
    /// Whether the fault was logged, since the last start of the device.
    reported: Atomic<bool>,
    stuck: Atomic<bool>,
    shrunk: Atomic<bool>,
    reconfigured: Atomic<bool>,
    #[pin]
    target: SpinLockIrq<Option<Target>>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Recovery { self.work }
}

impl Recovery {
    /// For a device that does not exist yet: faults are recorded until [`Self::attach`]. May sleep.
    pub(crate) fn new(log: Arc<EventLog>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                log,
                reported: Atomic::new(false),
                stuck: Atomic::new(false),
                shrunk: Atomic::new(false),
                reconfigured: Atomic::new(false),
                target <- new_spinlock_irq!(None),
                work <- new_work!("Recovery::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// From now on `device` handles faults, on `work_queue`. May sleep.
    pub(crate) fn attach(&self, device: Arc<dyn Recover>, work_queue: Arc<WorkQueue>) {
        let target = Target { device, work_queue };
        let before = self.target.lock().replace(target);
        // Not under the lock, because the drop may sleep.
        drop(before);
    }

    /// Queues no more work: the device is being unbound. The owner of the work queue has to wait
    /// for the work that is queued. Sleeps if it drops the last reference to the device.
    pub(crate) fn detach(&self) {
        let target = self.target.lock().take();
        // Not under the lock, because the drop may sleep.
        drop(target);
    }

    /// Records that the device is about to be started again, so that its next fault is logged. Any
    /// context.
    pub(crate) fn restarted(&self) {
        self.reported.store(false, Relaxed);
    }

    /// Whether this fault is the first since the device was started.
    fn is_first(&self) -> bool {
        !self.reported.xchg(true, Full)
    }

    /// Reports that the device broke queue `index`, by `fault`. Any context.
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

    /// Reports that, according to the device, the driver broke queue `index`, by `fault`. Any
    /// context.
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

    /// Reports that the device broke the event queue. Any context.
    #[cold]
    pub(crate) fn event_queue_broken(self: &Arc<Self>, device: &pci::Device<Bound>) {
        if self.is_first() {
            dev_err!(device, "the device broke the event queue\n");
        }
        self.schedule();
    }

    /// Reports that there are more used entries than the budget of an interrupt allows. Any
    /// context.
    #[cold]
    pub(crate) fn reap_later(self: &Arc<Self>) {
        self.schedule();
    }

    /// Reports that a request has been in flight for too long. Any context.
    pub(crate) fn stuck(self: &Arc<Self>) {
        self.stuck.store(true, Release);
        self.schedule();
    }

    /// Reports that the device memory has become smaller. Any context.
    pub(crate) fn shrunk(self: &Arc<Self>) {
        self.shrunk.store(true, Release);
        self.schedule();
    }

    /// Reports that the device may have changed its configuration. Any context.
    pub(crate) fn reconfigured(self: &Arc<Self>) {
        self.reconfigured.store(true, Release);
        self.schedule();
    }

    fn schedule(self: &Arc<Self>) {
        // Under the lock: without a target, the work queue may be destroyed.
        if let Some(target) = &*self.target.lock() {
            // An item that is queued already has not begun, so it does the same.
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
            reconfigured: this.reconfigured.xchg(false, Full),
        });
    }
}
