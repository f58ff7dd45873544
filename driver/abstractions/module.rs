// SPDX-License-Identifier: GPL-2.0

//! A module with one PCI driver and a directory in debugfs for its devices.

use super::take_over::{
    TakeOver,
    TakesOver, //
};
use kernel::{
    debugfs::Dir,
    driver::Registration,
    pci,
    prelude::*,
    InPlaceModule,
    ModuleMetadata,
    ThisModule, //
};

/// The directory. Modules have no data of their own that a driver's `probe`
/// could reach, so it sits in a static.
static mut ROOT: Option<Dir> = None;

/// Removes the directory when dropped.
struct Root;

impl Drop for Root {
    fn drop(&mut self) {
        // SAFETY: Dropped after the registration of the driver (field order), or when that failed:
        // no `probe` runs.
        unsafe { ROOT = None };
    }
}

/// The module. To be named in [`module!`].
#[pin_data]
pub(crate) struct PciModule<T: TakesOver> {
    // Fields are dropped in this order: the driver goes first, so that others can have its devices.
    #[pin]
    _driver: Registration<pci::Adapter<T>>,
    #[pin]
    _take_over: TakeOver<T>,
    _root: Root,
}

impl<T: TakesOver> InPlaceModule for PciModule<T> {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        const NAME: &CStr = <crate::LocalModule as ModuleMetadata>::NAME;

        // SAFETY: The driver is not registered yet, so no `probe` runs.
        unsafe { ROOT = Some(Dir::new(NAME)) };
        // In this order, so that what has been done is undone when the registration fails.
        try_pin_init!(Self {
            _root: Root,
            _take_over <- TakeOver::new(),
            _driver <- Registration::new(NAME, module),
        })
    }
}

/// A directory within the module's. To be called by a driver of the module. May
/// sleep; never fails, without debugfs nothing is shown.
pub(crate) fn debugfs_dir(name: &CStr) -> Dir {
    let root = &raw const ROOT;
    // SAFETY: Written only while no driver is registered.
    match unsafe { (*root).as_ref() } {
        Some(root) => root.subdir(name),
        None => Dir::new(name),
    }
}
