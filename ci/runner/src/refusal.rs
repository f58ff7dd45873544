// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that the driver refuses to bind a device that cannot work, and logs the reason.
//!
//! Without a bound device there is no device node, so these tests are not part of the
//! guest's test program.

use std::path::Path;
use std::time::Duration;

use ringbar_agent_protocol::machine::Iommu;
use ringbar_vm::agent::GuestCommand;
use ringbar_vm::kernel_log::{self, ExpectedProblem};
use ringbar_vm::setup::Setup;
use ringbar_vm::vm::{DEVICE_NODE, Vm, VmOptions};

/// The tests of [`behind_iommu`].
pub const BEHIND_IOMMU: [(&str, Iommu); 2] = [
    ("refusal::c2_device_that_bypasses_an_iommu", Iommu::Intel),
    (
        "refusal::c2_device_that_bypasses_a_virtio_iommu",
        Iommu::Virtio,
    ),
];

/// Maximum time for a command in the guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The vhost-user transport has no IOMMU support: the device would take IOVAs for
/// physical addresses.
///
/// # Errors
///
/// The failed condition.
pub fn behind_iommu(setup: &Setup, iommu: Iommu, log_dir: &Path) -> Result<(), String> {
    let options = VmOptions {
        iommu,
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
