// SPDX-License-Identifier: GPL-2.0

//! Counters, one file each in `/sys/kernel/debug/ringbar/<PCI address>/`.

use crate::{
    abstractions::{
        address_space::AddressSpace,
        module::debugfs_dir,
        pci::address,
        shared_memory::WordPage, //
    },
    uapi::{
        COUNTER_DOORBELLS,
        COUNTER_INTERRUPTS,
        COUNTER_REQUESTS,
        COUNTER_SEGMENTS, //
    }, //
};
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    device::Bound,
    fmt,
    page::Page,
    pci,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

/// The counters of one device, in a page that user space can map.
pub(crate) struct Stats(WordPage);

impl Stats {
    /// All zero. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self(WordPage::new()?), GFP_KERNEL)?)
    }

    /// Counts `requests` handed to the device, with `segments` of data in all. A
    /// large call is several.
    #[inline]
    pub(crate) fn requests(&self, requests: u64, segments: u64) {
        self.add(COUNTER_REQUESTS, requests);
        self.add(COUNTER_SEGMENTS, segments);
    }

    /// Counts a notification of the device.
    #[inline]
    pub(crate) fn doorbell(&self) {
        self.add(COUNTER_DOORBELLS, 1);
    }

    /// Counts an interrupt.
    #[inline]
    pub(crate) fn interrupt(&self) {
        self.add(COUNTER_INTERRUPTS, 1);
    }

    #[inline]
    fn add(&self, counter: usize, n: u64) {
        if let Some(counter) = self.0.words().get(counter) {
            counter.add(n, Relaxed);
        }
    }

    fn get(&self, counter: usize) -> u64 {
        self.0
            .words()
            .get(counter)
            .map_or(0, |counter| counter.load(Relaxed))
    }

    /// The page, for a map.
    pub(crate) fn page(&self) -> &Page {
        self.0.page()
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
    #[pin]
    segments: File<Arc<Stats>>,
    #[pin]
    maps: File<Arc<AddressSpace>>,
    dir: Dir,
}

impl StatsFiles {
    /// Makes the files of `device`. May sleep.
    pub(crate) fn new<'a>(
        device: &'a pci::Device<Bound>,
        stats: Arc<Stats>,
        maps: Arc<AddressSpace>,
    ) -> impl PinInit<Self, Error> + 'a {
        pin_init::pin_init_scope(move || {
            let dir = debugfs_dir(&address(device)?);
            let own = dir.clone();
            Ok(try_pin_init!(Self {
                requests <- own.read_callback_file(c"requests", stats.clone(), &show_requests),
                doorbells <- own.read_callback_file(c"doorbells", stats.clone(), &show_doorbells),
                interrupts <-
                    own.read_callback_file(c"interrupts", stats.clone(), &show_interrupts),
                segments <- own.read_callback_file(c"segments", stats.clone(), &show_segments),
                maps <- own.read_callback_file(c"maps", maps, &show_maps),
                dir,
            }))
        })
    }
}

fn show_requests(stats: &Arc<Stats>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", stats.get(COUNTER_REQUESTS))
}

fn show_doorbells(stats: &Arc<Stats>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", stats.get(COUNTER_DOORBELLS))
}

fn show_interrupts(stats: &Arc<Stats>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", stats.get(COUNTER_INTERRUPTS))
}

fn show_segments(stats: &Arc<Stats>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", stats.get(COUNTER_SEGMENTS))
}

fn show_maps(maps: &Arc<AddressSpace>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", maps.maps())
}
