// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Statistics in the text format of Prometheus, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Metrics have base units (seconds, bytes), and the lines of a metric follow each other. A
//! histogram has a bucket for each power of two of nanoseconds: its buckets are always the same, as
//! Prometheus needs them to be, and a quarter of those that the device has.

use std::fmt::Write;

use ringbar_control::reply::{Counts, Histogram, QueueStatistics, Statistics, Status};

use crate::report::{by_operation, role};

/// Exponents of the bounds of buckets in nanoseconds.
const BOUNDS: std::ops::RangeInclusive<u32> = 8..=36;

/// Metrics as text.
struct Text {
    text: String,
    /// Value of the label `device`.
    device: String,
}

/// Kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Text {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A line of the metric. The labels are in addition to that of the device.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text += &format!("{name}{{device=\"{}\"", escape(&self.device));
        for (label, text) in labels {
            self.text += &format!(",{label}=\"{}\"", escape(text));
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "}} {value}");
    }

    /// A metric with one line.
    fn single(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        labels: &[(&str, &str)],
        value: impl std::fmt::Display,
    ) {
        self.metric(name, kind, help);
        self.sample(name, labels, value);
    }
}

/// Escapes the value of a label.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The metrics of a device, whose name is the value of the label `device`.
pub fn text(device: &str, status: &Status, statistics: &Statistics) -> String {
    let mut text = Text {
        text: String::new(),
        device: device.to_owned(),
    };
    of_device(&mut text, status);
    of_queues(&mut text, &statistics.queues);
    text.text
}

fn of_device(text: &mut Text, status: &Status) {
    use Kind::Gauge;
    let labels = [
        ("version", &status.version[..]),
        ("storage", &status.storage),
        ("transport", &status.transport),
    ];
    text.single(
        "ringbar_device_info",
        Gauge,
        "The device; always 1.",
        &labels,
        1,
    );
    for (name, help, value) in [
        (
            "ringbar_device_memory_bytes",
            "Size of the device memory.",
            status.bytes,
        ),
        (
            "ringbar_device_connected",
            "Whether a virtual machine monitor is connected.",
            status.connected.into(),
        ),
        (
            "ringbar_device_storage_failed",
            "Whether the storage has failed for good.",
            status.storage_failure.is_some().into(),
        ),
        (
            "ringbar_device_uptime_seconds",
            "Time since the process started.",
            status.uptime_seconds,
        ),
    ] {
        text.single(name, Gauge, help, &[], value);
    }
}

fn of_queues(text: &mut Text, queues: &[QueueStatistics]) {
    type Counter = (&'static str, &'static str, fn(&Counts) -> u64);
    let counters: [Counter; 9] = [
        (
            "ringbar_requests_total",
            "Completed requests of any kind, and delivered events.",
            |counts| counts.requests,
        ),
        (
            "ringbar_request_errors_total",
            "Requests that were completed with an error.",
            |counts| counts.errors,
        ),
        (
            "ringbar_read_bytes_total",
            "Bytes that successful reads copied to guest memory.",
            |counts| counts.bytes_read,
        ),
        (
            "ringbar_written_bytes_total",
            "Bytes that successful writes copied from guest memory.",
            |counts| counts.bytes_written,
        ),
        (
            "ringbar_durable_writes_total",
            "Successful writes, and commands that write, with force unit access.",
            |counts| counts.durable_writes,
        ),
        (
            "ringbar_doorbells_total",
            "Notifications of the driver that reached the device.",
            |counts| counts.kicks,
        ),
        (
            "ringbar_interrupts_total",
            "Interrupts of the device.",
            |counts| counts.interrupts,
        ),
        (
            "ringbar_events_total",
            "Events that were delivered to the driver.",
            |counts| counts.events,
        ),
        (
            "ringbar_broken_queues_total",
            "How often a driver broke the queue.",
            |counts| counts.broken_queues,
        ),
    ];
    for (name, help, value) in counters {
        text.metric(name, Kind::Counter, help);
        for queue in queues {
            let number = queue.queue.to_string();
            let labels = [("queue", &number[..]), ("role", role(queue.role))];
            text.sample(name, &labels, value(&queue.counts));
        }
    }
    let name = "ringbar_requests_in_flight";
    let help = "Requests that the device has taken and not completed.";
    text.metric(name, Kind::Gauge, help);
    for queue in queues {
        let number = queue.queue.to_string();
        let labels = [("queue", &number[..]), ("role", role(queue.role))];
        text.sample(name, &labels, queue.in_flight);
    }
    let name = "ringbar_operations_total";
    text.metric(
        name,
        Kind::Counter,
        "Successful requests of each operation.",
    );
    for queue in queues {
        for (operation, count) in by_operation(&queue.counts) {
            let number = queue.queue.to_string();
            text.sample(name, &[("queue", &number), ("operation", operation)], count);
        }
    }
    let name = "ringbar_request_latency_seconds";
    let help = "Time from the moment at which the device took a request to its completion. Of \
                requests that are done at once only some are measured.";
    text.metric(name, Kind::Histogram, help);
    for queue in queues {
        for latencies in &queue.latencies {
            histogram(text, name, &queue.queue.to_string(), latencies);
        }
    }
}

fn histogram(text: &mut Text, name: &str, queue: &str, histogram: &Histogram) {
    let operation = &histogram.operation[..];
    let bucket = format!("{name}_bucket");
    let mut line = |bound: &str, count: u64| {
        let labels = [("queue", queue), ("operation", operation), ("le", bound)];
        text.sample(&bucket, &labels, count);
    };
    for exponent in BOUNDS {
        let bound = 1u64 << exponent;
        let below = histogram.buckets.iter();
        let count = below
            .filter(|bucket| bucket.le_ns.is_some_and(|le_ns| le_ns <= bound))
            .map(|bucket| bucket.count)
            .sum();
        line(&seconds(bound), count);
    }
    line("+Inf", histogram.count());
    let labels = [("queue", queue), ("operation", operation)];
    text.sample(&format!("{name}_sum"), &labels, seconds(histogram.sum_ns));
    text.sample(&format!("{name}_count"), &labels, histogram.count());
}

/// Nanoseconds as an exact number of seconds.
fn seconds(nanoseconds: u64) -> String {
    let (whole, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let text = format!("{whole}.{rest:09}");
    let text = text.trim_end_matches('0');
    text.trim_end_matches('.').to_owned()
}

#[cfg(test)]
#[path = "prometheus_tests.rs"]
mod tests;
