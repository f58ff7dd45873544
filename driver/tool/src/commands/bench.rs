// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar bench`.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::cli::BenchArgs;
use crate::commands::run_job;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::output;
use crate::range::Range;
use crate::sys::mapping::Access;
use crate::sys::queue::{Direction, Engine};
use crate::transfer::job::{Data, Job};
use crate::transfer::measurement::{Rates, time};

/// The result.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Median of the ratios of the rounds: rate of the device divided by that of the floor.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    rounds: u32,
    operation: &'static str,
    device: &'a Path,
    floor: &'static str,
    engine: Engine,
    depth: u32,
    block_size: u32,
    /// Those of the round with the median.
    device_rates: Rates,
    floor_rates: Rates,
}

/// Runs the job on the device and on the floor in turns, and prints one line.
pub fn run(args: &BenchArgs, json: bool) -> Result<()> {
    let direction = args.direction();
    let (access, floor_path) = match direction {
        Direction::Read => (Access::Read, "/dev/zero"),
        Direction::Write => (Access::ReadWrite, "/dev/null"),
    };
    let device = Device::open(&args.device, access)?;
    let floor = Device::open(Path::new(floor_path), access)?;
    let length = args.length.min(device.size()?.unwrap_or(u64::MAX));
    if length == 0 {
        return Err(Error::Empty {
            path: args.device.clone(),
        });
    }
    let job = Job {
        direction,
        range: Range { start: 0, length },
        block: args.queue.block_size,
        time: Some(args.seconds),
    };
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        let run = |device| run_job(device, &args.queue, &job, &mut Nothing, |_| {});
        // Each is the first one in every other round.
        let (device, floor) = if round % 2 == 0 {
            let device = run(&device)?;
            (device, run(&floor)?)
        } else {
            let floor = run(&floor)?;
            (run(&device)?, floor)
        };
        rounds.push((device.rates(), floor.rates()));
    }
    let report = Report::new(args, floor_path, rounds);
    if json {
        output::json(&report)?;
        return Ok(());
    }
    let mut text = output::text();
    writeln!(text, "{}", report.text())?;
    text.flush()?;
    Ok(())
}

impl<'a> Report<'a> {
    /// The result of at least one round. Each job of a round transferred at least a block.
    fn new(args: &'a BenchArgs, floor: &'static str, mut rounds: Vec<(Rates, Rates)>) -> Self {
        // The integers of the rates would make a slow device one without any rate.
        let rate = |rates: &Rates| rates.bytes as f64 / rates.seconds;
        let ratio = |(device, floor): &(Rates, Rates)| rate(device) / rate(floor);
        rounds.sort_by(|first, second| ratio(first).total_cmp(&ratio(second)));
        let median = &rounds[rounds.len() / 2];
        Self {
            ratio: ratio(median),
            ratio_min: ratio(&rounds[0]),
            ratio_max: ratio(&rounds[rounds.len() - 1]),
            rounds: args.rounds,
            operation: match args.direction() {
                Direction::Read => "read",
                Direction::Write => "write",
            },
            device: &args.device,
            floor,
            engine: args.queue.engine,
            depth: args.queue.depth(),
            block_size: args.queue.block_size,
            device_rates: median.0,
            floor_rates: median.1,
        }
    }

    fn text(&self) -> String {
        let style = output::HEADING;
        format!(
            "{style}{}{style:#} of {} ({} to {}, {} rounds): {} {} of {}, {}, depth {}: \
             {}/s to {}/s, mean latency {} to {}",
            digits(self.ratio),
            self.floor,
            digits(self.ratio_min),
            digits(self.ratio_max),
            self.rounds,
            self.device.display(),
            self.operation,
            ringbar_size::format(self.block_size.into()),
            self.engine,
            self.depth,
            ringbar_size::round(self.device_rates.bytes_per_second),
            ringbar_size::round(self.floor_rates.bytes_per_second),
            time(self.device_rates.latency_ns.mean),
            time(self.floor_rates.latency_ns.mean),
        )
    }
}

/// A ratio with two significant digits.
fn digits(ratio: f64) -> String {
    let decimals = match ratio {
        ..0.001 => 5,
        ..0.01 => 4,
        ..0.1 => 3,
        _ => 2,
    };
    format!("{ratio:.decimals$}")
}

/// Data without a meaning: buffers are zero at first, and stay as they are.
struct Nothing;

impl Data for Nothing {
    type Error = Error;

    fn prepare(&mut self, _: u64, bytes: &mut [u8]) -> Result<usize> {
        Ok(bytes.len())
    }

    fn consume(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::transfer::measurement::Latency;
    use clap::Parser;

    fn rates(bytes_per_second: u64) -> Rates {
        Rates {
            bytes: bytes_per_second,
            seconds: 1.0,
            bytes_per_second,
            blocks_per_second: 1,
            latency_ns: Latency::default(),
        }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds() {
        let cli = Cli::try_parse_from(["ringbar", "bench", "x", "--rounds=3"]).unwrap();
        let Command::Bench(args) = cli.command else {
            panic!("not a benchmark");
        };
        // 0.5, 0.1 and 0.3; the medians of the rates would give another ratio.
        let rounds = vec![
            (rates(500), rates(1000)),
            (rates(10), rates(100)),
            (rates(600), rates(2000)),
        ];
        let report = Report::new(&args, "/dev/zero", rounds);
        assert_eq!(
            (report.ratio, report.ratio_min, report.ratio_max),
            (0.3, 0.1, 0.5)
        );
        assert_eq!(report.device_rates.bytes_per_second, 600);
        let text = report.text();
        assert!(text.contains("0.30"), "{text}");
        assert!(
            text.contains(
                "of /dev/zero (0.10 to 0.50, 3 rounds): x read of 128K, io_uring, depth 8"
            ),
            "{text}"
        );
        // Less than a byte per second.
        let slow = Rates {
            seconds: 2.0,
            bytes_per_second: 0,
            ..rates(1)
        };
        let report = Report::new(&args, "/dev/zero", vec![(slow, slow)]);
        assert_eq!(report.ratio, 1.0);
    }

    #[test]
    fn small_ratios_keep_two_digits() {
        let found = [1.234, 0.5, 0.051, 0.0042, 0.00012].map(digits);
        assert_eq!(found, ["1.23", "0.50", "0.051", "0.0042", "0.00012"]);
    }
}
