// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar reset`.

use std::path::Path;

use serde_json::json;

use crate::device::Device;
use crate::error::Result;
use crate::output;
use crate::sys::mapping::Access;

/// Resets a device. It prints nothing without `json`.
pub fn run(path: &Path, json: bool) -> Result<()> {
    let device = Device::open(path, Access::Read)?;
    device.reset()?;
    if json {
        let state = device.state()?.name();
        output::json(&json!({ "device": path.to_string_lossy(), "state": state }))?;
    }
    Ok(())
}
