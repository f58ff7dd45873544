// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar reset`.

use std::path::Path;

use crate::device::Device;
use crate::error::Result;
use crate::sys::mapping::Access;

/// Resets a device.
pub fn run(path: &Path) -> Result<()> {
    Device::open(path, Access::Read)?.reset()
}
