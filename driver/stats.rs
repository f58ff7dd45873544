// SPDX-License-Identifier: GPL-2.0

//! Counters, one file each in `/sys/kernel/debug/ringbar/<PCI address>/`.

use crate::{
    abstractions::{
        debugfs,
        mm::{
            address_space::AddressSpace,
            shared_memory::WordPage, //
        },
        module::debugfs_dir, //
    },
    uapi::{
        COUNTER_DOORBELLS,
        COUNTER_INTERRUPTS,
        COUNTER_REQUESTS,
        COUNTER_SEGMENTS, //
    }, //
};
use kernel::{
    device::Bound,
    page::Page,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        }, //
        Arc,
    }, //
};

/// The counters of one device, in a page that user space can map.
pub(crate) struct Stats(WordPage);

impl Stats {
    /// Counters with the value zero. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self(WordPage::new()?), GFP_KERNEL)?)
    }

    /// Counts `requests` that were submitted to the device, with `segments` of data in all. A large
    /// call is several requests.
    #[inline]
    pub(crate) fn requests(&self, requests: u64, segments: u64) {
        // Once, because each access to the page is a function call.
        let words = self.0.words();
        Self::add(words, COUNTER_REQUESTS, requests);
        Self::add(words, COUNTER_SEGMENTS, segments);
    }

    /// Counts a notification of the device.
    #[inline]
    pub(crate) fn doorbell(&self) {
        Self::add(self.0.words(), COUNTER_DOORBELLS, 1);
    }

    /// Counts an interrupt.
    #[inline]
    pub(crate) fn interrupt(&self) {
        Self::add(self.0.words(), COUNTER_INTERRUPTS, 1);
    }

    #[inline]
    fn add(words: &[Atomic<u64>], counter: usize, n: u64) {
        if let Some(counter) = words.get(counter) {
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

/// The number that a file shows.
enum Shown {
    Counter(Arc<Stats>, usize),
    Maps(Arc<AddressSpace>),
}

impl debugfs::Number for Shown {
    fn number(&self) -> u64 {
        match self {
            Self::Counter(stats, counter) => stats.get(*counter),
            // CAST: Never negative.
            Self::Maps(maps) => maps.maps() as u64,
        }
    }
}

/// Creates the files of `device`, which are removed when it is unbound. May sleep.
pub(crate) fn show(
    device: &pci::Device<Bound>,
    stats: &Arc<Stats>,
    maps: &Arc<AddressSpace>,
) -> Result {
    let Some(dir) = debugfs_dir() else {
        return Ok(());
    };
    let counter = |counter| Shown::Counter(stats.clone(), counter);
    let mut shown = KVec::new();
    for file in [
        (c"requests", counter(COUNTER_REQUESTS)),
        (c"doorbells", counter(COUNTER_DOORBELLS)),
        (c"interrupts", counter(COUNTER_INTERRUPTS)),
        (c"segments", counter(COUNTER_SEGMENTS)),
        (c"maps", Shown::Maps(maps.clone())),
    ] {
        shown.push(file, GFP_KERNEL)?;
    }
    debugfs::show(device, dir, shown)
}
