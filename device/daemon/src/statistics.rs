// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The counters of a device as the control socket shows them.

use ringbar_control::reply::{Bucket, Counts, Histogram, QueueRole, QueueStatistics, Statistics};
use ringbar_model::counters::{EngineCounts, Latencies};
use ringbar_model::{Device, QueueCounts, RequestCounts};
use ringbar_spec::{CONTROL_QUEUE, EVENT_QUEUE};

/// What the device has done so far.
pub fn of(device: &Device) -> Statistics {
    let total = device.counts();
    Statistics {
        total: counts(total.queues, total.requests),
        queues: (0..).zip(device.queue_counts()).map(queue).collect(),
    }
}

fn counts(queues: EngineCounts, requests: RequestCounts) -> Counts {
    // Without `..`, so that a counter that is added is not forgotten here.
    let EngineCounts {
        requests: number,
        kicks,
        interrupts,
        broken_queues,
    } = queues;
    let RequestCounts {
        reads,
        writes,
        durable_writes,
        flushes,
        discards,
        write_zeroes,
        copies,
        fills,
        compares,
        checksums,
        bytes_read,
        bytes_written,
        errors,
        events,
    } = requests;
    Counts {
        requests: number,
        kicks,
        interrupts,
        broken_queues,
        reads,
        writes,
        durable_writes,
        flushes,
        discards,
        write_zeroes,
        copies,
        fills,
        compares,
        checksums,
        bytes_read,
        bytes_written,
        errors,
        events,
    }
}

fn queue((queue, known): (u16, QueueCounts)) -> QueueStatistics {
    QueueStatistics {
        queue,
        role: match queue {
            CONTROL_QUEUE => QueueRole::Control,
            EVENT_QUEUE => QueueRole::Event,
            _ => QueueRole::Io,
        },
        in_flight: known.in_flight,
        counts: counts(known.queue, known.requests),
        latencies: known
            .latencies
            .iter()
            .filter(|(_, latencies)| !latencies.buckets.is_empty())
            .map(|(operation, latencies)| histogram(operation, latencies))
            .collect(),
    }
}

fn histogram(operation: &str, latencies: &Latencies) -> Histogram {
    let nanoseconds = |duration: std::time::Duration| {
        // 2^64 ns are 584 years.
        u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
    };
    Histogram {
        operation: operation.to_owned(),
        sum_ns: nanoseconds(latencies.sum),
        buckets: latencies
            .buckets
            .iter()
            .map(|bucket| Bucket {
                le_ns: bucket.upper_bound.map(nanoseconds),
                count: bucket.count,
            })
            .collect(),
    }
}
