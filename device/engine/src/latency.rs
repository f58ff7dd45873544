// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How long requests take, as histograms.
//!
//! A latency is the time from the moment at which the device took a request out of the available
//! ring to the moment at which its used entry was written. Of the requests that are completed at
//! once, the first of each batch is measured and each 16th after it: to read the clock for each
//! would cost 7 % of the time of a request of 4 KiB. Requests that follow one that was deferred are
//! all measured.
//!
//! A bucket is a range of latencies. There are four for each power of two, so a bucket's bounds
//! differ by a quarter at most. The bounds are the same in every histogram, so histograms can be
//! added up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets for each power of two: 2 to the power of this.
const SPLIT: u32 = 2;

/// The first bucket has the latencies of up to 2 to the power of this, in nanoseconds: 256 ns.
const FIRST: u32 = 8;

/// The last bucket has the latencies of more than 2 to the power of this, in nanoseconds: 69 s.
const LAST: u32 = 36;

/// The number of buckets: the first, those of each power of two, and the last.
const BUCKETS: usize = 2 + (((LAST - FIRST) as usize) << SPLIT);

/// The bucket of a latency in nanoseconds.
const fn bucket(nanoseconds: u64) -> usize {
    // The upper bound of a bucket belongs to it.
    let below = nanoseconds.saturating_sub(1);
    if below < 1 << FIRST {
        return 0;
    }
    let power = below.ilog2();
    if power >= LAST {
        return BUCKETS - 1;
    }
    let part = (below >> (power - SPLIT)) as usize & ((1 << SPLIT) - 1);
    1 + (((power - FIRST) as usize) << SPLIT) + part
}

/// The greatest latency of a bucket in nanoseconds; `None` for the last one, which has no end.
const fn upper_bound(bucket: usize) -> Option<u64> {
    if bucket + 1 >= BUCKETS {
        return None;
    }
    let Some(above) = bucket.checked_sub(1) else {
        return Some(1 << FIRST);
    };
    let power = FIRST + (above >> SPLIT) as u32;
    let part = (above & ((1 << SPLIT) - 1)) as u64;
    Some(((1 << SPLIT) + part + 1) << (power - SPLIT))
}

/// Latencies of one operation on one queue. One thread records at a time, any number read.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            nanoseconds: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Records one request. Only the worker of the queue calls it, so a load and a store are
    /// enough: an atomic addition would take several times as long.
    pub(crate) fn record(&self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let add = |counter: &AtomicU64, number: u64| {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(number);
            counter.store(sum, Ordering::Relaxed);
        };
        add(&self.buckets[bucket(nanoseconds)], 1);
        add(&self.nanoseconds, nanoseconds);
    }

    pub(crate) fn get(&self) -> Latencies {
        let counts = self.buckets.iter().enumerate();
        Latencies {
            sum: Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)),
            buckets: counts
                .map(|(bucket, count)| Bucket {
                    upper_bound: upper_bound(bucket).map(Duration::from_nanos),
                    count: count.load(Ordering::Relaxed),
                })
                .filter(|bucket| bucket.count > 0)
                .collect(),
        }
    }
}

/// A copy of a histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// The sum of all latencies.
    pub sum: Duration,
    /// The buckets that are not empty, in the order of their bounds.
    pub buckets: Vec<Bucket>,
}

/// The requests with latencies of one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The greatest latency; `None` where there is no limit. Greater than that of the bucket
    /// before.
    pub upper_bound: Option<Duration>,
    /// Number of requests.
    pub count: u64,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_by_a_quarter_at_most_and_belong_to_their_bucket() {
        let bounds: Vec<_> = (0..BUCKETS - 1)
            .map(|at| upper_bound(at).unwrap())
            .collect();
        assert_eq!(bounds[0], 256);
        assert_eq!(bounds[1..6], [320, 384, 448, 512, 640]);
        assert_eq!(*bounds.last().unwrap(), 1 << LAST);
        for pair in bounds.windows(2) {
            assert!(pair[0] < pair[1] && pair[1] * 4 <= pair[0] * 5, "{pair:?}");
        }
        for (at, bound) in bounds.into_iter().enumerate() {
            assert_eq!((bucket(bound), bucket(bound + 1)), (at, at + 1), "{bound}");
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper_bound(BUCKETS - 1), None);
    }

    #[test]
    fn a_copy_has_the_buckets_that_are_not_empty() {
        let histogram = Histogram::default();
        assert_eq!(histogram.get(), Latencies::default());
        for nanoseconds in [300, 320, 321, 1 << 40] {
            histogram.record(Duration::from_nanos(nanoseconds));
        }
        let expected = [(Some(320), 2), (Some(384), 1), (None, 1)];
        let copy = histogram.get();
        assert_eq!(copy.sum, Duration::from_nanos(941 + (1 << 40)));
        assert_eq!(
            copy.buckets,
            expected.map(|(bound, count)| Bucket {
                upper_bound: bound.map(Duration::from_nanos),
                count
            })
        );
    }
}
