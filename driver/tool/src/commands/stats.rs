// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar stats`.

use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::StatsArgs;
use crate::counters::{Counters, Values};
use crate::device::Device;
use crate::error::Result;
use crate::output;
use crate::sys::mapping::Access;

/// The counters for JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    device: &'a Path,
    #[serde(flatten)]
    values: Values,
    /// From the second time on.
    #[serde(skip_serializing_if = "Option::is_none")]
    increase: Option<Increase>,
}

#[derive(Debug, Serialize)]
struct Increase {
    seconds: f64,
    #[serde(flatten)]
    values: Values,
}

/// Prints the counters, once or repeatedly.
pub fn run(args: &StatsArgs, json: bool) -> Result<()> {
    let device = Device::open(&args.device, Access::Read)?;
    let counters = Counters::map(&device)?;
    let (mut before, mut time) = (counters.read(), Instant::now());
    print(&args.device, json, before, None)?;
    let Some(interval) = args.watch else {
        return Ok(());
    };
    loop {
        thread::sleep(interval);
        let (now, elapsed) = (counters.read(), time.elapsed());
        time += elapsed;
        print(&args.device, json, now, Some((now.since(before), elapsed)))?;
        before = now;
    }
}

fn print(
    device: &Path,
    json: bool,
    values: Values,
    increase: Option<(Values, Duration)>,
) -> std::io::Result<()> {
    if json {
        return output::json(&Report {
            device,
            values,
            increase: increase.map(|(values, elapsed)| Increase {
                seconds: elapsed.as_secs_f64(),
                values,
            }),
        });
    }
    let mut text = output::text();
    match increase {
        None => {
            for (name, value) in values.named() {
                writeln!(text, "{name} {value}")?;
            }
        }
        Some((increase, _)) => {
            writeln!(text)?;
            for ((name, value), (_, added)) in values.named().into_iter().zip(increase.named()) {
                writeln!(text, "{name} {value} +{added}")?;
            }
        }
    }
    text.flush()
}
