// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar events`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::device::Device;
use crate::error::Result;
use crate::event_log::{self, Snapshot};
use crate::region::Region;
use crate::sys::mapping::Access;

/// Prints the event log, the oldest record first.
pub fn run(path: &Path) -> Result<()> {
    let device = Device::open(path, Access::Read)?;
    let log = device.map_all(Region::Events)?;
    let Snapshot {
        records,
        overwritten,
        unfinished,
    } = event_log::read(&log);
    let mut output = BufWriter::new(io::stdout().lock());
    if overwritten > 0 {
        writeln!(output, "({overwritten} older events are no longer there)")?;
    }
    for record in records {
        writeln!(output, "{record}")?;
    }
    if unfinished > 0 {
        writeln!(output, "({unfinished} events are being written just now)")?;
    }
    output.flush()?;
    Ok(())
}
