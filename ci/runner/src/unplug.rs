// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that a device can be unplugged under load, and plugged again.
//!
//! QEMU 11.1.3 aborts when a vfio-user device with MSI-X is unplugged, so the device has MSI.
//! The host adds and removes the device during these tests, so they are not part of the guest's
//! test program, which has one fixed device.

use std::path::Path;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::machine::{Iommu, Transport};
use ringbar_vm::device::{Device, DeviceOptions};
use ringbar_vm::kernel_log;
use ringbar_vm::qemu;
use ringbar_vm::setup::{Kernel, Setup};
use ringbar_vm::temporary::TemporaryDir;
use ringbar_vm::vm::{Vm, VmOptions};
use serde_json::json;

use crate::steps::{self, Step, StepResult};
use crate::suite::debug;

/// Maximum time for a command in the guest, which waits up to a minute for an effect of the
/// host's.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// Maximum time until QEMU has removed a device that the guest has released.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Slot into which the device is plugged, and QEMU's id of the device.
const SLOT: &str = "slot0";
const DEVICE: &str = "plugged";

/// Number of times that the device is unplugged under load.
const ROUNDS: u32 = 3;

/// The same in the machine for many times.
const MANY_ROUNDS: u32 = 50;

/// Shell functions for the steps.
const FUNCTIONS: &str = r#"
# eventually COMMAND...: for what happens on its own and tells nobody.
eventually() {
    local end=$(($(date +%s) + 60))
    while [ $(date +%s) -lt $end ]; do
        ! "$@" || return 0
        sleep 0.1
    done
    echo "not within a minute: $*" >&2
    exit 1
}
address() {
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat $device/device)" != 0x10f0 ] || basename $device
    done
}
plugged() { [ -n "$(address)" ] && [ -c /dev/ringbar0 ]; }
unplugged() { [ -z "$(address)" ] && ! [ -e /dev/ringbar0 ]; }
has_moved() { [ "$(cat /sys/kernel/debug/ringbar/*/requests)" -gt "$1" ]; }
verified() {
    fio --name=verified --filename=/dev/ringbar0 --size=16M --rw=randwrite --bsrange=512-64k \
        --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 "$@"
}
"#;

/// A machine in which the device is unplugged.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Name, as part of the names of tests.
    pub name: &'static str,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// IOMMU.
    pub iommu: Iommu,
    /// Whether `make test` runs it.
    pub daily: bool,
    /// Number of times that the device is unplugged under load.
    pub rounds: u32,
}

/// The machines.
pub const MACHINES: [Machine; 7] = [
    Machine {
        name: "unplug",
        kernel: Kernel::Stock,
        iommu: Iommu::None,
        daily: true,
        rounds: ROUNDS,
    },
    Machine {
        name: "unplug_long",
        kernel: Kernel::Stock,
        iommu: Iommu::None,
        daily: false,
        rounds: MANY_ROUNDS,
    },
    Machine {
        name: "unplug_intel",
        kernel: Kernel::Stock,
        iommu: Iommu::Intel,
        daily: true,
        rounds: ROUNDS,
    },
    Machine {
        name: "unplug_virtio",
        kernel: Kernel::Stock,
        iommu: Iommu::Virtio,
        daily: false,
        rounds: ROUNDS,
    },
    Machine {
        name: "debug::unplug",
        kernel: Kernel::Debug,
        iommu: Iommu::None,
        daily: false,
        rounds: ROUNDS,
    },
    Machine {
        name: "debug::unplug_intel",
        kernel: Kernel::Debug,
        iommu: Iommu::Intel,
        daily: false,
        rounds: ROUNDS,
    },
    Machine {
        name: "debug::unplug_virtio",
        kernel: Kernel::Debug,
        iommu: Iommu::Virtio,
        daily: false,
        rounds: ROUNDS,
    },
];

/// The tests, in order. Each test begins in the state that the previous one leaves.
const STEPS: &[Step<Fixture>] = &[
    ("d2_plugged_device_works", plugged),
    ("d2_unplug_under_load_and_plug_again", unplugged_under_load),
    ("d2_unplug_of_an_idle_device", unplugged_when_idle),
    ("d2_log_is_clean_after_unplug", log_is_clean),
];

/// Names of the tests of a machine.
pub fn names(machine: &Machine) -> impl Iterator<Item = String> + use<> {
    steps::names(machine.name, STEPS)
}

/// Runs the tests; returns their results in the order of [`names`]. The set-up must be for the
/// machine's kernel.
pub fn run(setup: &Setup, machine: &Machine, log_dir: &Path) -> Vec<StepResult> {
    steps::run(Fixture::start(setup, machine, log_dir), STEPS)
}

/// The virtual machine and the device that the steps use.
struct Fixture {
    vm: Vm,
    device: Device,
    iommu: Iommu,
    rounds: u32,
    _directory: TemporaryDir,
}

impl Fixture {
    fn start(setup: &Setup, machine: &Machine, log_dir: &Path) -> Result<Self, String> {
        let text = |error: ringbar_vm::error::Error| error.to_string();
        let directory = TemporaryDir::new().map_err(text)?;
        std::fs::create_dir_all(log_dir).map_err(|error| error.to_string())?;
        let options = DeviceOptions {
            transport: Transport::VfioUser,
            size: 64 << 20,
            extra: ["--msi-only", "--keep-running"].map(str::to_owned).to_vec(),
            ..DeviceOptions::default()
        };
        let log = log_dir.join("plugged.log");
        let device =
            Device::start(&setup.device, options, directory.path(), DEVICE, &log).map_err(text)?;
        let options = VmOptions {
            devices: Vec::new(),
            iommu: machine.iommu,
            kernel_args: match machine.kernel {
                Kernel::Stock => Vec::new(),
                Kernel::Debug => debug::KERNEL_ARGS.map(str::to_owned).to_vec(),
            },
            // Without a reserve, the slot has no room for the memory of the device.
            qemu_args: vec![
                "-device".into(),
                format!("pcie-root-port,id={SLOT},chassis=1,pref64-reserve=256M"),
            ],
            log_dir: Some(log_dir.to_owned()),
            ..VmOptions::default()
        };
        let vm = Vm::start(setup, &options).map_err(text)?;
        let fixture = Self {
            vm,
            device,
            iommu: machine.iommu,
            rounds: machine.rounds,
            _directory: directory,
        };
        fixture.shell("modprobe ringbar")?;
        Ok(fixture)
    }

    /// Runs lines in the guest's shell. The first failure ends the script.
    fn shell(&self, lines: &str) -> StepResult {
        steps::shell(self.vm.agent(), FUNCTIONS, lines, COMMAND_TIMEOUT)
    }

    /// Plugs the device in, and waits until the driver has bound it. QEMU may still be removing
    /// the former one.
    fn plug(&mut self) -> StepResult {
        let mut device = qemu::vfio_user_device(DEVICE, self.device.socket());
        device["bus"] = json!(SLOT);
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        loop {
            match self.vm.monitor().execute("device_add", device.clone()) {
                Ok(_) => break,
                Err(error) if Instant::now() >= deadline => return Err(error.to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        self.shell("eventually plugged")
    }

    /// Unplugs the device, and waits until it has gone.
    fn unplug(&mut self) -> StepResult {
        self.vm
            .monitor()
            .execute("device_del", json!({ "id": DEVICE }))
            .map_err(|error| error.to_string())?;
        self.shell("eventually unplugged")
    }

    /// Whether the device works as it should in this machine.
    fn expect_working(&self) -> StepResult {
        self.shell("verified >/run/verified.log || { cat /run/verified.log >&2; exit 1; }")?;
        self.shell("grep ringbar /proc/interrupts | grep -q MSI-")?;
        match self.iommu {
            Iommu::None => Ok(()),
            Iommu::Intel | Iommu::Virtio => {
                self.shell("grep -q ^DMA /sys/bus/pci/devices/$(address)/iommu_group/type")
            }
        }
    }
}

fn plugged(fixture: &mut Fixture) -> StepResult {
    fixture.plug()?;
    fixture.expect_working()
}

/// Starts a load that lasts until the device has gone.
fn start_load(fixture: &Fixture) -> StepResult {
    let script = format!(
        "{FUNCTIONS}
        verified --time_based --runtime=600
        echo $? >/run/load.status"
    );
    let script = script.replace('\'', r"'\''");
    fixture.shell(&format!(
        "rm -f /run/load.status
        setsid sh -c '{script}' </dev/null >/run/load.log 2>&1 &
        eventually has_moved 2000"
    ))
}

fn unplugged_under_load(fixture: &mut Fixture) -> StepResult {
    for round in 1..=fixture.rounds {
        start_load(fixture)?;
        fixture.unplug()?;
        // The load ends with an error, but not with wrong data.
        fixture.shell(
            "eventually [ -e /run/load.status ]
            [ $(cat /run/load.status) != 0 ] || { echo 'fio noticed nothing' >&2; exit 1; }
            ! grep -i 'verify: bad' /run/load.log >&2",
        )?;
        fixture.plug()?;
        fixture
            .expect_working()
            .map_err(|error| format!("round {round}: {error}"))?;
    }
    Ok(())
}

fn unplugged_when_idle(fixture: &mut Fixture) -> StepResult {
    fixture.unplug()?;
    fixture.plug()?;
    fixture.expect_working()
}

fn log_is_clean(fixture: &mut Fixture) -> StepResult {
    let log = fixture.vm.agent().kernel_log();
    let log = log.map_err(|error| error.to_string())?;
    match kernel_log::report(&log, &[]) {
        None => Ok(()),
        Some(report) => Err(report),
    }
}
