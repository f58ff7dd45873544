// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the queues have done so far.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counters of all queues of an engine, and of engines one after the other that share
/// them. Each is exact; two of them read together may be of different moments.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    kicks: AtomicU64,
    interrupts: AtomicU64,
    broken_queues: AtomicU64,
}

/// A copy of [`Counters`], or what a batch adds to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Used entries written.
    pub requests: u64,
    /// Notifications from the driver that were read from a descriptor.
    pub kicks: u64,
    /// Notifications to the driver, also those that an injected fault has lost.
    pub interrupts: u64,
    /// Queues broken by the driver.
    pub broken_queues: u64,
}

impl Counters {
    /// One atomic addition for each counter that moved.
    pub(crate) fn add(&self, counts: &Counts) {
        for (counter, count) in [
            (&self.requests, counts.requests),
            (&self.kicks, counts.kicks),
            (&self.interrupts, counts.interrupts),
            (&self.broken_queues, counts.broken_queues),
        ] {
            if count != 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// The present values.
    pub fn get(&self) -> Counts {
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            kicks: self.kicks.load(Ordering::Relaxed),
            interrupts: self.interrupts.load(Ordering::Relaxed),
            broken_queues: self.broken_queues.load(Ordering::Relaxed),
        }
    }
}
