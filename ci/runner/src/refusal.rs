// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that the driver refuses to bind a device that cannot work, and logs the reason.
//!
//! Without a bound device there is no device node, so these tests are not part of the
//! guest's test program.

use std::path::Path;
use std::time::Duration;

use ringbar_vm::agent::GuestCommand;
use ringbar_vm::kernel_log::{self, ExpectedProblem};
use ringbar_vm::setup::Setup;
use ringbar_vm::vm::{DEVICE_NODE, Vm, VmOptions};

/// Name of the test of [`behind_iommu`].
pub const BEHIND_IOMMU: &str = "refusal::c2_device_that_bypasses_an_iommu";

/// Maximum time for a command in the guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The vhost-user transport has no IOMMU support: the device would take IOVAs for
/// physical addresses.
///
/// # Errors
///
/// The failed condition.
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
    // The driver logs the reason, the PCI core the failed probe.
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
