// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Statistics as tables.

use std::fmt::Write;
use std::time::Duration;

use ringbar_control::reply::{Bucket, Counts, QueueRole, QueueStatistics, Statistics};

use crate::table::Align::{Left, Right};
use crate::table::Table;
use crate::time;

/// How counters are shown.
#[derive(Clone, Copy, Debug)]
pub enum Scale {
    /// As they are.
    Total,
    /// For each second of this time, in which they were counted.
    PerSecond(Duration),
}

impl Scale {
    fn divide(self, count: u64) -> f64 {
        match self {
            Self::Total => count as f64,
            Self::PerSecond(time) => count as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE),
        }
    }

    fn count(self, count: u64) -> String {
        match self {
            Self::Total => count.to_string(),
            Self::PerSecond(_) => format!("{:.0}", self.divide(count)),
        }
    }

    /// A number of bytes, with its unit.
    fn bytes(self, bytes: u64) -> String {
        // The conversion saturates.
        ringbar_size::round(self.divide(bytes) as u64)
    }
}

/// The statistics of these queues, and of all together.
pub fn statistics(statistics: &Statistics, scale: Scale) -> String {
    let mut text = queues(statistics, scale).to_string();
    let operations = operations(&statistics.total, scale);
    if !operations.is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{operations}");
    }
    let latencies = latencies(&statistics.queues);
    if let Some(latencies) = latencies {
        let _ = write!(text, "\n{latencies}");
    }
    text
}

fn queues(statistics: &Statistics, scale: Scale) -> impl std::fmt::Display {
    let mut table = Table::new(match scale {
        Scale::Total => [
            (Left, "QUEUE"),
            (Left, "ROLE"),
            (Right, "REQUESTS"),
            (Right, "READ"),
            (Right, "WRITTEN"),
            (Right, "ERRORS"),
            (Right, "DOORBELLS"),
            (Right, "INTERRUPTS"),
            (Right, "IN FLIGHT"),
        ],
        Scale::PerSecond(_) => [
            (Left, "QUEUE"),
            (Left, "ROLE"),
            (Right, "REQUESTS/s"),
            (Right, "READ/s"),
            (Right, "WRITTEN/s"),
            (Right, "ERRORS/s"),
            (Right, "DOORBELLS/s"),
            (Right, "INTERRUPTS/s"),
            (Right, "IN FLIGHT"),
        ],
    });
    let mut row = |name: String, role: &str, counts: &Counts, in_flight: u64| {
        table.row([
            name,
            role.to_owned(),
            scale.count(counts.requests),
            scale.bytes(counts.bytes_read),
            scale.bytes(counts.bytes_written),
            scale.count(counts.errors),
            scale.count(counts.kicks),
            scale.count(counts.interrupts),
            in_flight.to_string(),
        ]);
    };
    for queue in &statistics.queues {
        let role = role(queue.role);
        row(
            queue.queue.to_string(),
            role,
            &queue.counts,
            queue.in_flight,
        );
    }
    if statistics.queues.len() > 1 {
        let in_flight = statistics.queues.iter().map(|queue| queue.in_flight).sum();
        row("all".to_owned(), "", &statistics.total, in_flight);
    }
    table
}

/// The name of what a queue is for.
pub const fn role(role: QueueRole) -> &'static str {
    match role {
        QueueRole::Control => "control",
        QueueRole::Event => "event",
        QueueRole::Io => "io",
    }
}

/// Number of requests of each operation, by the names that rules for faults have for them.
pub const fn by_operation(counts: &Counts) -> [(&'static str, u64); 9] {
    [
        ("read", counts.reads),
        ("write", counts.writes),
        ("flush", counts.flushes),
        ("discard", counts.discards),
        ("write-zeroes", counts.write_zeroes),
        ("copy", counts.copies),
        ("fill", counts.fills),
        ("compare", counts.compares),
        ("crc32c", counts.checksums),
    ]
}

/// What all queues together have executed; empty if they have executed nothing.
fn operations(counts: &Counts, scale: Scale) -> String {
    let unit = match scale {
        Scale::Total => "executed",
        Scale::PerSecond(_) => "executed/s",
    };
    let others = [
        ("durable", counts.durable_writes),
        ("events", counts.events),
        ("broken queues", counts.broken_queues),
    ];
    let parts: Vec<_> = by_operation(counts)
        .into_iter()
        .chain(others)
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {}", scale.count(count)))
        .collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!("{unit}: {}", parts.join(", ")),
    }
}

fn latencies(queues: &[QueueStatistics]) -> Option<impl std::fmt::Display> {
    let mut table = Table::new([
        (Left, "QUEUE"),
        (Left, "OPERATION"),
        (Right, "MEASURED"),
        (Right, "MEAN"),
        (Right, "50 %"),
        (Right, "99 %"),
        (Right, "99.9 %"),
        (Right, "GREATEST"),
    ]);
    let mut is_empty = true;
    for queue in queues {
        for histogram in &queue.latencies {
            let quantile = |part| histogram.quantile(part).map(bound).unwrap_or_default();
            is_empty = false;
            table.row([
                queue.queue.to_string(),
                histogram.operation.clone(),
                histogram.count().to_string(),
                histogram.mean_ns().map(time::format).unwrap_or_default(),
                quantile(0.5),
                quantile(0.99),
                quantile(0.999),
                quantile(1.0),
            ]);
        }
    }
    (!is_empty).then_some(table)
}

/// The bound of a bucket, as the latency of a request in it.
fn bound(bucket: Bucket) -> String {
    match bucket.le_ns {
        Some(nanoseconds) => format!("<= {}", time::format(nanoseconds)),
        None => "> 68.7 s".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ringbar_control::reply::Histogram;

    use super::*;

    fn example() -> Statistics {
        let counts = Counts {
            requests: 2000,
            reads: 1500,
            writes: 500,
            bytes_read: 6 << 20,
            bytes_written: 512,
            kicks: 7,
            interrupts: 12,
            ..Counts::default()
        };
        let queue = |number, role, counts, latencies| QueueStatistics {
            queue: number,
            role,
            in_flight: u64::from(number),
            counts,
            latencies,
        };
        let bucket = |le_ns, count| Bucket { le_ns, count };
        let histogram = Histogram {
            operation: "read".to_owned(),
            sum_ns: 200_000,
            buckets: vec![bucket(Some(1024), 99), bucket(Some(14_336), 1)],
        };
        Statistics {
            total: counts,
            queues: vec![
                queue(1, QueueRole::Event, Counts::default(), vec![]),
                queue(2, QueueRole::Io, counts, vec![histogram]),
            ],
        }
    }

    #[test]
    fn totals_have_a_line_for_each_queue_and_operation() {
        let expected = "\
QUEUE  ROLE   REQUESTS     READ  WRITTEN  ERRORS  DOORBELLS  INTERRUPTS  IN FLIGHT
1      event         0      0 B      0 B       0          0           0          1
2      io         2000  6.0 MiB    512 B       0          7          12          2
all               2000  6.0 MiB    512 B       0          7          12          3

executed: read 1500, write 500

QUEUE  OPERATION  MEASURED     MEAN        50 %        99 %      99.9 %    GREATEST
2      read            100  2.00 us  <= 1.02 us  <= 1.02 us  <= 14.3 us  <= 14.3 us
";
        assert_eq!(statistics(&example(), Scale::Total), expected);
    }

    #[test]
    fn rates_are_those_of_a_second() {
        let mut one = example();
        one.queues.remove(0);
        one.queues[0].latencies.clear();
        let text = statistics(&one, Scale::PerSecond(Duration::from_secs(4)));
        let expected = "\
QUEUE  ROLE  REQUESTS/s   READ/s  WRITTEN/s  ERRORS/s  DOORBELLS/s  INTERRUPTS/s  IN FLIGHT
2      io           500  1.5 MiB      128 B         0            2             3          2

executed/s: read 375, write 125
";
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_is_shown_of_nothing() {
        let text = statistics(&Statistics::default(), Scale::Total);
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
