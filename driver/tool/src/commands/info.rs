// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar info`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use ringbar_uapi as uapi;

use crate::counters::Counters;
use crate::device::Device;
use crate::error::Result;
use crate::sys::mapping::Access;

/// Prints information about a device, one `name: value` a line.
pub fn run(path: &Path) -> Result<()> {
    let device = Device::open(path, Access::Read)?;
    let place = device.place()?;
    let size = device.size()?.unwrap_or(0);
    let state = match device.info()?.state {
        uapi::STATE_IN_SERVICE => "in service",
        uapi::STATE_OUT_OF_SERVICE => "out of service, see ringbar events and ringbar reset",
        _ => "unknown",
    };
    let counters = Counters::map(&device)?;
    let mut output = BufWriter::new(io::stdout().lock());
    let mut line = |name: &str, value: &str| writeln!(output, "{name:<14}{value}");
    line("device:", &device.path().display().to_string())?;
    line("memory:", &ringbar_size::describe(size))?;
    line("state:", state)?;
    line("PCI address:", &place.pci_address)?;
    line("driver:", &place.driver)?;
    for (name, value) in counters.read() {
        line(&format!("{name}:"), &value.to_string())?;
    }
    output.flush()?;
    Ok(())
}
