// SPDX-License-Identifier: GPL-2.0

//! A module with one PCI driver and a directory in debugfs for its devices.

use super::{
    debugfs::Dir,
    power::{
        Adapter,
        SystemSleep, //
    },
    take_over::{
        TakeOver,
        TakesOver, //
    }, //
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
        global_lock,
        Arc, //
    },
    InPlaceModule,
    ModuleMetadata,
    ThisModule, //
};

global_lock! {
    // SAFETY: Used only after `READY` was set, and that is done after the initialisation.
    unsafe(uninit) static ROOT: Mutex<Option<Arc<Dir>>> = None;
}

/// Whether somebody initialises [`ROOT`], or has done so.
static CLAIMED: Atomic<bool> = Atomic::new(false);

/// Whether [`ROOT`] can be used.
static READY: Atomic<bool> = Atomic::new(false);

/// The directory. Modules have no data of their own that a driver's `probe`
/// could reach, so it sits in a static, while this lives.
struct Root;

impl Root {
    /// Makes the directory. May sleep. `EBUSY` the second time.
    fn new(name: &CStr) -> Result<Self> {
        if CLAIMED.xchg(true, Full) {
            return Err(EBUSY);
        }
        // SAFETY: Only who has set `CLAIMED` comes here, and it is never cleared.
        unsafe { ROOT.init() };
        READY.store(true, Release);
        *ROOT.lock() = Some(Arc::new(Dir::new(name), GFP_KERNEL)?);
        Ok(Self)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let root = ROOT.lock().take();
        drop(root);
    }
}

/// The module. To be named in [`module!`].
#[pin_data]
pub(crate) struct PciModule<T: SystemSleep + TakesOver> {
    // Fields are dropped in this order: the driver goes first, so that others can have its devices.
    #[pin]
    _driver: Registration<Adapter<T>>,
    #[pin]
    _take_over: TakeOver<T>,
    _root: Root,
}

impl<T: SystemSleep + TakesOver> InPlaceModule for PciModule<T> {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        const NAME: &CStr = <crate::LocalModule as ModuleMetadata>::NAME;

        // In this order, so that what has been done is undone when the registration fails.
        try_pin_init!(Self {
            _root: Root::new(NAME)?,
            _take_over <- TakeOver::new(),
            _driver <- Registration::new(NAME, module),
        })
    }
}

/// The module's directory in debugfs, while there is the module. May sleep.
pub(crate) fn debugfs_dir() -> Option<Arc<Dir>> {
    if READY.load(Acquire) {
        ROOT.lock().clone()
    } else {
        None
    }
}
