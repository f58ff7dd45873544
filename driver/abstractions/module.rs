// SPDX-License-Identifier: GPL-2.0

//! A module with one PCI driver, a directory in debugfs for its devices, and a queue for
//! work that may outlive them.

use super::{
    debugfs::Dir,
    pci::{
        power::{
            Adapter,
            Shutdown,
            SystemSleep, //
        },
        take_over::{
            TakeOver,
            TakesOver, //
        }, //
    },
    task::work::WorkQueue, //
};
use kernel::{
    driver::Registration,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        global_lock, //
        Arc,
    }, //
    InPlaceModule,
    ModuleMetadata,
    ThisModule,
};

global_lock! {
    // SAFETY: Used only after `READY` was set, which follows the initialisation.
    unsafe(uninit) static ROOT: Mutex<Option<Common>> = None;
}

/// The objects that all devices share.
struct Common {
    dir: Arc<Dir>,
    work: Arc<WorkQueue>,
}

/// Greatest number of items that wait at a time: each occupies a thread.
const MAX_WAITING: u16 = 32;

/// Whether [`ROOT`] is being initialised, or has been.
static CLAIMED: Atomic<bool> = Atomic::new(false);

/// Whether [`ROOT`] can be used.
static READY: Atomic<bool> = Atomic::new(false);

/// The owner of [`Common`]. A driver's `probe` cannot access data of the module, so [`Common`] is
/// in a static, as long as this value lives.
struct Root;

impl Root {
    /// Creates directory and queue. May sleep. `EBUSY` the second time.
    fn new(name: &CStr) -> Result<Self> {
        let work = Arc::new(WorkQueue::for_waiting(MAX_WAITING)?, GFP_KERNEL)?;
        let dir = Arc::new(Dir::new(name), GFP_KERNEL)?;
        if CLAIMED.xchg(true, Full) {
            return Err(EBUSY);
        }
        // SAFETY: Only the caller that has set `CLAIMED` comes here, and it is never cleared.
        unsafe { ROOT.init() };
        READY.store(true, Release);
        *ROOT.lock() = Some(Common { dir, work });
        Ok(Self)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let common = ROOT.lock().take();
        if let Some(Common { dir, work }) = common {
            drop(dir);
            // All devices were unbound, so no work is queued any more; but the queue may live for
            // ever, if a device that could not be stopped refers to it.
            work.drain();
        }
    }
}

/// The module. To be named in [`module!`].
#[pin_data]
pub(crate) struct PciModule<T: SystemSleep + Shutdown + TakesOver> {
    // Fields are dropped in this order: the driver first, so that other drivers can get its
    // devices.
    #[pin]
    _driver: Registration<Adapter<T>>,
    #[pin]
    _take_over: TakeOver<T>,
    _root: Root,
}

impl<T: SystemSleep + Shutdown + TakesOver> InPlaceModule for PciModule<T> {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        const NAME: &CStr = <crate::LocalModule as ModuleMetadata>::NAME;

        // In this order, so that a failed registration undoes the earlier steps.
        try_pin_init!(Self {
            _root: Root::new(NAME)?,
            _take_over <- TakeOver::new(),
            _driver <- Registration::new(NAME, module),
        })
    }
}

/// The module's directory in debugfs, while the module is loaded. May sleep.
pub(crate) fn debugfs_dir() -> Option<Arc<Dir>> {
    READY
        .load(Acquire)
        .then(|| ROOT.lock().as_ref().map(|common| common.dir.clone()))
        .flatten()
}

/// The queue for work that needs no device and may take any time, depending on other programs:
/// unbinding a device does not wait for it, unloading the module does. To be called by a driver of
/// the module, which must queue nothing once its devices are unbound. May sleep.
pub(crate) fn work_queue() -> Result<Arc<WorkQueue>> {
    READY
        .load(Acquire)
        .then(|| ROOT.lock().as_ref().map(|common| common.work.clone()))
        .flatten()
        .ok_or(ENODEV)
}
