// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What commands return.

use serde::{Deserialize, Serialize};

/// The command is done, and there is nothing to say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// The device, and the process that it runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Number of the process.
    pub pid: u32,
    /// Whole seconds since the process started.
    pub uptime_seconds: u64,
    /// Size of the device memory in bytes.
    pub bytes: u64,
    /// Number of I/O queues.
    pub io_queues: u16,
    /// What holds the device memory, as the option `--storage` says it.
    pub storage: String,
    /// Why the storage has failed for good; `None` if it has not.
    pub storage_failure: Option<String>,
    /// The protocol to the virtual machine monitor, as the option `--transport` says it.
    pub transport: String,
    /// The socket of the virtual machine monitor.
    pub socket: String,
    /// Whether a monitor is connected.
    pub connected: bool,
    /// Which messages the log has, see [`SetLog`](crate::command::SetLog).
    pub log: String,
}

/// What a device has done since its process started, over all connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Statistics {
    /// All queues together.
    #[serde(flatten)]
    pub total: Counts,
    /// Each queue, in the order of their numbers.
    pub queues: Vec<QueueStatistics>,
}

/// Defines [`Counts`].
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one queue, or of all. Each is exact; two of them may be of different moments.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// What was counted since these counters were `earlier`; 0 where they began anew.
            #[must_use]
            pub const fn since(&self, earlier: &Self) -> Self {
                Self {
                    $($name: self.$name.saturating_sub(earlier.$name),)*
                }
            }
        }
    };
}

counts! {
    /// Completed requests of any kind, and delivered events.
    requests,
    /// Notifications of the driver that reached the device.
    kicks,
    /// Interrupts of the device.
    interrupts,
    /// How often a driver broke a queue.
    broken_queues,
    /// Successful reads.
    reads,
    /// Successful writes.
    writes,
    /// Successful writes, and commands that write, with force unit access (FUA).
    durable_writes,
    /// Successful flushes.
    flushes,
    /// Successful discards.
    discards,
    /// Successful commands that write zeroes.
    write_zeroes,
    /// Successful copies within the device.
    copies,
    /// Successful fills.
    fills,
    /// Successful comparisons, with any result.
    compares,
    /// Successful checksums.
    checksums,
    /// Bytes that successful reads copied to guest memory.
    bytes_read,
    /// Bytes that successful writes copied from guest memory.
    bytes_written,
    /// Requests that were completed with an error.
    errors,
    /// Events that were delivered to the driver.
    events,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueRole {
    /// Control requests.
    Control,
    /// Events for the driver.
    Event,
    /// Transfers and commands.
    Io,
}

/// What one queue has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueStatistics {
    /// Its number.
    pub queue: u16,
    /// What it is for.
    pub role: QueueRole,
    /// Number of requests that the device has taken and not completed: buffers for events, requests
    /// that wait for a disk, a flush or a delay.
    pub in_flight: u64,
    /// Its counters.
    #[serde(flatten)]
    pub counts: Counts,
    /// How long its requests took, for each operation of which some were measured.
    pub latencies: Vec<Histogram>,
}

impl QueueStatistics {
    /// What the queue has done since these statistics were `earlier`. The number of requests in
    /// flight is the present one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |operation: &str| {
            let mut all = earlier.latencies.iter();
            all.find(|histogram| histogram.operation == operation)
        };
        let measured = self.latencies.iter();
        Self {
            counts: self.counts.since(&earlier.counts),
            latencies: measured
                .map(|histogram| match before(&histogram.operation) {
                    Some(before) => histogram.since(before),
                    None => histogram.clone(),
                })
                .filter(|histogram| !histogram.buckets.is_empty())
                .collect(),
            ..*self
        }
    }
}

impl Statistics {
    /// What the device has done since these statistics were `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |number| earlier.queues.iter().find(|queue| queue.queue == number);
        Self {
            total: self.total.since(&earlier.total),
            queues: self
                .queues
                .iter()
                .map(|queue| match before(queue.queue) {
                    Some(before) => queue.since(before),
                    None => queue.clone(),
                })
                .collect(),
        }
    }
}

/// Latencies of the requests of one operation on one queue: from the moment at which the device took
/// a request to the one at which the driver could see its result. Of requests that are done at once
/// only some are measured, the first of each batch and each 16th after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Histogram {
    /// The operation, by the name that rules for faults have for it.
    pub operation: String,
    /// The sum of all latencies in nanoseconds.
    pub sum_ns: u64,
    /// The buckets that are not empty, in the order of their bounds.
    pub buckets: Vec<Bucket>,
}

/// The requests whose latencies are above the bound of the bucket before, and not above this one.
/// There are four buckets for each power of two, from 256 ns to 69 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bucket {
    /// The greatest latency in nanoseconds; `None` for more than the greatest bound.
    pub le_ns: Option<u64>,
    /// Number of requests.
    pub count: u64,
}

impl Histogram {
    /// The requests that were measured since this histogram was `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |le_ns| {
            let same = earlier.buckets.iter().find(|bucket| bucket.le_ns == le_ns);
            same.map_or(0, |bucket| bucket.count)
        };
        Self {
            operation: self.operation.clone(),
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
            buckets: self
                .buckets
                .iter()
                .map(|bucket| Bucket {
                    count: bucket.count.saturating_sub(before(bucket.le_ns)),
                    ..*bucket
                })
                .filter(|bucket| bucket.count > 0)
                .collect(),
        }
    }

    /// Number of requests that were measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }

    /// The mean latency in nanoseconds; `None` where nothing was measured.
    pub fn mean_ns(&self) -> Option<u64> {
        self.sum_ns.checked_div(self.count())
    }

    /// The bucket in which the latency lies that this part of the requests does not exceed, from 0
    /// to 1; `None` where nothing was measured.
    pub fn quantile(&self, part: f64) -> Option<Bucket> {
        let count = self.count();
        // The number of the request in the order of latencies, counted from 1.
        let rank = ((part * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        self.buckets.iter().copied().find(|bucket| {
            seen += bucket.count;
            seen >= rank
        })
    }
}

/// A rule for faults was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedFault {
    /// Its number.
    pub id: u64,
}

/// A rule for faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its number.
    pub id: u64,
    /// The rule, in its shortest form.
    pub rule: String,
    /// Number of requests that it was about.
    pub matches: u64,
    /// Number of requests on which it had its effect.
    pub firings: u64,
}

/// Rules for faults were cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// Number of rules.
    pub cleared: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(buckets: &[(Option<u64>, u64)]) -> Histogram {
        let buckets = buckets.iter();
        Histogram {
            operation: "read".into(),
            sum_ns: 7000,
            buckets: buckets
                .map(|&(le_ns, count)| Bucket { le_ns, count })
                .collect(),
        }
    }

    #[test]
    fn quantiles_are_those_of_the_ranks() {
        let all = histogram(&[(Some(256), 50), (Some(512), 49), (None, 1)]);
        let bound = |part| all.quantile(part).unwrap().le_ns;
        assert_eq!((all.count(), all.mean_ns()), (100, Some(70)));
        assert_eq!(bound(0.0), Some(256));
        assert_eq!(bound(0.5), Some(256));
        assert_eq!(bound(0.51), Some(512));
        assert_eq!(bound(0.99), Some(512));
        assert_eq!(bound(1.0), None);
        let none = histogram(&[]);
        assert_eq!((none.mean_ns(), none.quantile(0.5)), (None, None));
    }
    #[test]
    fn differences_are_those_of_each_bucket() {
        let early = histogram(&[(Some(256), 2), (Some(512), 1)]);
        let late = histogram(&[(Some(256), 2), (Some(512), 4), (None, 1)]);
        let difference = histogram(&[(Some(512), 3), (None, 1)]);
        assert_eq!(late.since(&early).buckets, difference.buckets);
        let queue = |latencies: &[&Histogram], reads| QueueStatistics {
            queue: 2,
            role: QueueRole::Io,
            in_flight: reads,
            counts: Counts {
                reads,
                ..Counts::default()
            },
            latencies: latencies.iter().copied().cloned().collect(),
        };
        let statistics = |queue| Statistics {
            total: Counts::default(),
            queues: vec![queue],
        };
        let since = |early, late| statistics(late).since(&statistics(early)).queues.remove(0);
        let (before, after) = (queue(&[&early], 5), queue(&[&late], 7));
        let difference = since(before.clone(), after.clone());
        assert_eq!((difference.counts.reads, difference.in_flight), (2, 7));
        assert_eq!(difference.latencies, [late.since(&early)]);
        assert_eq!(since(before, queue(&[&early], 5)).latencies, []);
        assert_eq!(since(queue(&[], 0), after.clone()), after);
    }
}
