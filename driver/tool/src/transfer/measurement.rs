// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rates and latencies of a job.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told from longer ones: an hour, in nanoseconds.
const LONGEST: u64 = 3_600_000_000_000;

/// What a job has done so far.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Number of bytes that were transferred.
    pub bytes: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Time from the first submission to the last completion.
    pub elapsed: Duration,
    /// In nanoseconds, with two digits.
    latencies: Histogram<u64>,
}

/// Latencies of blocks: from the submission of a block to the time at which the program has its
/// completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Mean in nanoseconds.
    pub mean: u64,
    /// Median in nanoseconds.
    pub p50: u64,
    /// 99 % of the blocks have at most this latency, in nanoseconds.
    pub p99: u64,
    /// Greatest latency in nanoseconds.
    pub max: u64,
}

/// Rates and latencies for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Number of bytes that were transferred.
    pub bytes: u64,
    /// Time in seconds.
    pub seconds: f64,
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Blocks per second.
    pub blocks_per_second: u64,
    /// Latencies.
    pub latency_ns: Latency,
}

impl Measurement {
    /// Of nothing.
    pub fn new() -> Self {
        Self {
            bytes: 0,
            blocks: 0,
            elapsed: Duration::ZERO,
            latencies: Histogram::new_with_bounds(1, LONGEST, 2).expect("valid bounds"),
        }
    }

    /// Counts a block of `bytes` bytes.
    pub fn add(&mut self, bytes: u64, latency: Duration) {
        self.bytes += bytes;
        self.blocks += 1;
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(nanoseconds);
    }

    /// The latencies; all 0 without a block.
    pub fn latency(&self) -> Latency {
        Latency {
            mean: self.latencies.mean() as u64,
            p50: self.latencies.value_at_quantile(0.5),
            p99: self.latencies.value_at_quantile(0.99),
            max: self.latencies.max(),
        }
    }

    /// Rates and latencies.
    pub fn rates(&self) -> Rates {
        Rates {
            bytes: self.bytes,
            seconds: self.elapsed.as_secs_f64(),
            bytes_per_second: per_second(self.bytes, self.elapsed),
            blocks_per_second: per_second(self.blocks, self.elapsed),
            latency_ns: self.latency(),
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = self.rates();
        write!(
            f,
            "{:.3} s, {}/s, {} blocks/s; {}",
            rates.seconds,
            ringbar_size::round(rates.bytes_per_second),
            rates.blocks_per_second,
            rates.latency_ns
        )
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, p50, p99, max] = [self.mean, self.p50, self.p99, self.max].map(time);
        write!(f, "latency mean {mean}, 50 % {p50}, 99 % {p99}, max {max}")
    }
}

/// A number of nanoseconds as text, with one decimal place.
pub fn time(nanoseconds: u64) -> String {
    format!("{:.1?}", Duration::from_nanos(nanoseconds))
}

/// `count` in `elapsed` as a number per second; 0 in no time.
pub fn per_second(count: u64, elapsed: Duration) -> u64 {
    let nanoseconds = elapsed.as_nanos();
    let scaled = u128::from(count) * 1_000_000_000;
    let rate = scaled.checked_div(nanoseconds).unwrap_or(0);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second() {
        let half = Duration::from_millis(500);
        assert_eq!(per_second(0, half), 0);
        assert_eq!(per_second(7, half), 14);
        assert_eq!(per_second(7, Duration::ZERO), 0);
        assert_eq!(per_second(u64::MAX, half), u64::MAX);
        assert_eq!(per_second(1_000_000, Duration::from_secs(1 << 40)), 0);
    }

    #[test]
    fn a_measurement_has_rates_and_latencies() {
        let mut measurement = Measurement::new();
        assert_eq!(measurement.latency().max, 0);
        for _ in 0..98 {
            measurement.add(4096, Duration::from_micros(10));
        }
        measurement.add(4096, Duration::from_micros(100));
        measurement.add(4096, Duration::from_millis(1));
        measurement.elapsed = Duration::from_millis(200);
        let rates = measurement.rates();
        assert_eq!((rates.bytes, rates.bytes_per_second), (409_600, 2_048_000));
        assert_eq!(rates.blocks_per_second, 500);
        // The histogram has two digits.
        let near = |found: u64, expected: u64| {
            assert!(
                found.abs_diff(expected) * 50 <= expected,
                "{found}, {expected}"
            );
        };
        near(rates.latency_ns.p50, 10_000);
        near(rates.latency_ns.p99, 100_000);
        near(rates.latency_ns.max, 1_000_000);
        near(rates.latency_ns.mean, 20_800);
        let text = measurement.to_string();
        assert!(
            text.starts_with("0.200 s, 2.0 MiB/s, 500 blocks/s; latency mean 20."),
            "{text}"
        );
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time(0), "0.0ns");
        assert_eq!(time(14_336), "14.3µs");
        assert_eq!(time(2_500_000), "2.5ms");
    }
}
