// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar stats`.

use std::io::{self, Write};
use std::thread;

use crate::cli::StatsArgs;
use crate::counters::Counters;
use crate::device::Device;
use crate::error::Result;
use crate::sys::mapping::Access;

/// Prints the counters, once or repeatedly.
pub fn run(args: &StatsArgs) -> Result<()> {
    let device = Device::open(&args.device, Access::Read)?;
    let counters = Counters::map(&device)?;
    let mut output = io::stdout().lock();
    let mut before = counters.read();
    for (name, value) in before {
        writeln!(output, "{name} {value}")?;
    }
    output.flush()?;
    let Some(interval) = args.watch else {
        return Ok(());
    };
    loop {
        thread::sleep(interval);
        let now = counters.read();
        writeln!(output)?;
        for ((name, value), (_, earlier)) in now.into_iter().zip(before) {
            // Counters wrap around to 0.
            writeln!(output, "{name} {value} +{}", value.wrapping_sub(earlier))?;
        }
        output.flush()?;
        before = now;
    }
}
