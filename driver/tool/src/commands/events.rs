// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar events`.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::device::Device;
use crate::error::Result;
use crate::event_log::{self, Snapshot};
use crate::output;
use crate::region::Region;
use crate::sys::mapping::Access;

/// Prints the event log, the oldest record first.
pub fn run(path: &Path, json: bool) -> Result<()> {
    let device = Device::open(path, Access::Read)?;
    let log = device.map_all(Region::Events)?;
    let Snapshot {
        records,
        overwritten,
        unfinished,
    } = event_log::read(&log);
    if json {
        let events: Vec<Value> = records.iter().map(event_log::Record::json).collect();
        output::json(&json!({
            "device": path.to_string_lossy(),
            "overwritten": overwritten,
            "unfinished": unfinished,
            "events": events,
        }))?;
        return Ok(());
    }
    let mut text = output::text();
    if overwritten > 0 {
        writeln!(text, "({overwritten} older events are no longer there)")?;
    }
    for record in records {
        let style = match record.is_fault() {
            true => output::BAD,
            false => anstyle::Style::new(),
        };
        writeln!(text, "{style}{record}{style:#}")?;
    }
    if unfinished > 0 {
        writeln!(text, "({unfinished} events are being written just now)")?;
    }
    text.flush()?;
    Ok(())
}
