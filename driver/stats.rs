// SPDX-License-Identifier: GPL-2.0

//! Counters, one file each in `/sys/kernel/debug/ringbar/<PCI address>/`.

use crate::abstractions::{
    module::debugfs_dir,
    pci::address, //
};
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    device::Bound,
    fmt,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// A number that only grows.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Any context.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.add(n, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The counters of one device.
pub(crate) struct Stats {
    /// Requests handed to the device. A large call is several.
    pub(crate) requests: Counter,
    /// Notifications of the device.
    pub(crate) doorbells: Counter,
    /// Interrupts taken.
    pub(crate) interrupts: Counter,
}

impl Stats {
    /// All zero. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                requests: Counter::new(),
                doorbells: Counter::new(),
                interrupts: Counter::new(),
            },
            GFP_KERNEL,
        )?)
    }
}

/// The files. They go when this is dropped.
#[pin_data]
pub(crate) struct StatsFiles {
    #[pin]
    requests: File<Arc<Stats>>,
    #[pin]
    doorbells: File<Arc<Stats>>,
    #[pin]
    interrupts: File<Arc<Stats>>,
    dir: Dir,
}

impl StatsFiles {
    /// Makes the files of `device`. May sleep.
    pub(crate) fn new<'a>(
        device: &'a pci::Device<Bound>,
        stats: Arc<Stats>,
    ) -> impl PinInit<Self, Error> + 'a {
        pin_init::pin_init_scope(move || {
            let dir = debugfs_dir(&address(device)?);
            let own = dir.clone();
            Ok(try_pin_init!(Self {
                requests <- own.read_callback_file(
                    c"requests", stats.clone(), &|s: &Arc<Stats>, f: &mut fmt::Formatter<'_>| show(&s.requests, f)),
                doorbells <- own.read_callback_file(
                    c"doorbells", stats.clone(), &|s: &Arc<Stats>, f: &mut fmt::Formatter<'_>| show(&s.doorbells, f)),
                interrupts <- own.read_callback_file(
                    c"interrupts", stats.clone(), &|s: &Arc<Stats>, f: &mut fmt::Formatter<'_>| show(&s.interrupts, f)),
                dir,
            }))
        })
    }
}

fn show(counter: &Counter, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", counter.get())
}
