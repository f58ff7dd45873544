// SPDX-License-Identifier: Apache-2.0 OR MIT

//! That the driver refuses to bind where it could not work, and says why.
//!
//! There is no device node then, so these are no tests of the guest's program:
//! the host asks.

use std::path::Path;
use std::time::Duration;

use crate::agent::GuestCommand;
use crate::kernel_log::{self, ExpectedProblem};
use crate::setup::Setup;
use crate::vm::{DEVICE_NODE, Vm, VmOptions};

/// Name of the test of [`behind_iommu`].
pub const BEHIND_IOMMU: &str = "refusal::c2_device_that_bypasses_an_iommu";

/// How long a command in the guest may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The transport has no IOMMU support, so behind one that translates, the device
/// would take its addresses for physical ones.
///
/// # Errors
///
/// What is not as it should be.
pub fn behind_iommu(setup: &Setup, log_dir: &Path) -> Result<(), String> {
    let options = VmOptions {
        qemu_args: ["-device", "intel-iommu"].map(str::to_owned).to_vec(),
        kernel_args: ["intel_iommu=on", "iommu=nopt"].map(str::to_owned).to_vec(),
        log_dir: Some(log_dir.to_owned()),
        ..VmOptions::default()
    };
    let vm = Vm::start(setup, &options).map_err(|error| error.to_string())?;
    let shell = |line: &str| {
        vm.agent()
            .check(&GuestCommand::shell(line), COMMAND_TIMEOUT)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    shell("grep -q ^DMA /sys/bus/pci/devices/*/iommu_group/type")
        .map_err(|error| format!("no IOMMU translates in this machine: {error}"))?;
    shell("modprobe ringbar")?;
    shell(&format!("! test -e {DEVICE_NODE}"))?;
    shell("! ls /sys/bus/pci/drivers/ringbar | grep :")?;
    let log = vm.agent().kernel_log().map_err(|error| error.to_string())?;
    // The driver says why, the kernel that.
    let refused = [
        "an IOMMU translates this device's addresses",
        "probe with driver ringbar failed",
    ]
    .map(|text| ExpectedProblem::Provoked {
        test: None,
        text: text.into(),
        required: true,
    });
    match kernel_log::report(&log, &refused) {
        None => Ok(()),
        Some(report) => Err(report),
    }
}
