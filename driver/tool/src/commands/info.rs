// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar info`.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use crate::counters::Counters;
use crate::device::{Device, State};
use crate::error::Result;
use crate::output;
use crate::sys::mapping::Access;

/// Prints information about a device, one `name: value` a line.
pub fn run(path: &Path, json: bool) -> Result<()> {
    let device = Device::open(path, Access::Read)?;
    let place = device.place()?;
    let info = device.info()?;
    let state = State::of(&info);
    let counters = Counters::map(&device)?.read();
    if json {
        output::json(&json!({
            "device": path.to_string_lossy(),
            "memory": info.capacity,
            "mappable": info.aperture,
            "state": state.name(),
            "pci_address": place.pci_address,
            "driver": place.driver,
            "io_queues": info.io_queues,
            "max_request": info.max_request,
            "max_command": info.max_command,
            "max_segments": info.max_segments,
            "counters": counters,
        }))?;
        return Ok(());
    }
    let style = state.style();
    let state = match state {
        State::OutOfService => "out of service, see ringbar events and ringbar reset",
        other => other.text(),
    };
    let mut text = output::text();
    let mut line = |name: &str, value: &str| writeln!(text, "{name:<14}{value}");
    line("device:", &device.path().display().to_string())?;
    line("memory:", &ringbar_size::describe(info.capacity))?;
    line("state:", &format!("{style}{state}{style:#}"))?;
    line("PCI address:", &place.pci_address)?;
    line("driver:", &place.driver)?;
    for (name, value) in counters.named() {
        line(&format!("{name}:"), &value.to_string())?;
    }
    text.flush()?;
    Ok(())
}
