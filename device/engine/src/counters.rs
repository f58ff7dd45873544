// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the queues have done so far.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::latency::{Histogram, Latencies};

/// Counters of each queue of an engine, and of engines one after the other that share
/// them. Each is exact; two of them read together may be of different moments.
///
/// Reading them locks nothing that a worker needs.
#[derive(Debug, Default)]
pub struct Counters {
    /// By the numbers of the queues. An engine adds those of its queues when it starts.
    queues: Mutex<Vec<Arc<QueueCounters>>>,
}

/// A copy of the counters of one queue or of several, or what a batch adds to them.
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

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.kicks += other.kicks;
        self.interrupts += other.interrupts;
        self.broken_queues += other.broken_queues;
    }
}

/// A copy of what is known of one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Its counters.
    pub counts: Counts,
    /// Number of requests that the device has taken and not completed, at the end of the last
    /// batch.
    pub in_flight: u64,
    /// How long requests took, for each of [`OPERATIONS`] in this order. See
    /// [`latency`](crate::latency) for which requests are measured.
    ///
    /// [`OPERATIONS`]: crate::DeviceModel::OPERATIONS
    pub latencies: Vec<Latencies>,
}

impl Counters {
    /// The counters of a queue of a device with so many operations.
    pub(crate) fn queue(&self, index: u16, operations: usize) -> Arc<QueueCounters> {
        let mut queues = self.lock();
        while queues.len() <= usize::from(index) {
            queues.push(Arc::new(QueueCounters::new(operations)));
        }
        Arc::clone(&queues[usize::from(index)])
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<QueueCounters>>> {
        // A vector that is only ever extended.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present values of all queues together.
    pub fn get(&self) -> Counts {
        let mut sum = Counts::default();
        for queue in self.lock().iter() {
            sum += queue.get();
        }
        sum
    }

    /// The present values of each queue, in the order of their numbers. Empty before the first
    /// engine.
    pub fn queues(&self) -> Vec<QueueCounts> {
        self.lock()
            .iter()
            .map(|queue| QueueCounts {
                counts: queue.get(),
                in_flight: queue.in_flight.load(Ordering::Relaxed),
                latencies: queue.latencies.iter().map(Histogram::get).collect(),
            })
            .collect()
    }
}

/// Counters of one queue.
#[derive(Debug)]
pub(crate) struct QueueCounters {
    requests: AtomicU64,
    kicks: AtomicU64,
    interrupts: AtomicU64,
    broken_queues: AtomicU64,
    in_flight: AtomicU64,
    latencies: Vec<Histogram>,
}

impl QueueCounters {
    fn new(operations: usize) -> Self {
        Self {
            requests: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            broken_queues: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            latencies: std::iter::repeat_with(Histogram::default)
                .take(operations)
                .collect(),
        }
    }

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

    /// The number of requests in flight is now this.
    pub(crate) fn set_in_flight(&self, requests: usize) {
        self.in_flight.store(requests as u64, Ordering::Relaxed);
    }

    /// The histogram of an operation.
    pub(crate) fn latency(&self, operation: usize) -> Option<&Histogram> {
        self.latencies.get(operation)
    }

    fn get(&self) -> Counts {
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            kicks: self.kicks.load(Ordering::Relaxed),
            interrupts: self.interrupts.load(Ordering::Relaxed),
            broken_queues: self.broken_queues.load(Ordering::Relaxed),
        }
    }
}
