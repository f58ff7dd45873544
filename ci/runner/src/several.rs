// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of a machine with four devices, two over each transport.
//!
//! The host removes and adds devices during these tests, so they are not part of the guest's test
//! program, which has one fixed device. All tests share one virtual machine.

use std::path::Path;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::machine::Transport;
use ringbar_spec::DeviceConfig;
use ringbar_vm::device::{Device, DeviceOptions};
use ringbar_vm::kernel_log;
use ringbar_vm::qemu::{self, VhostUserDevice};
use ringbar_vm::setup::Setup;
use ringbar_vm::temporary::TemporaryDir;
use ringbar_vm::vm::{Vm, VmOptions};
use serde_json::{Value, json};

use crate::steps::{self, Step, StepResult};

/// Maximum time for a command in the guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// Maximum time until QEMU has removed a device that the guest has released.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The transport of each device. The device number N has N + 1 MiB and the ACPI index N + 10.
const TRANSPORTS: [Transport; 4] = [
    Transport::VhostUser,
    Transport::VhostUser,
    Transport::VfioUser,
    Transport::VfioUser,
];

/// Shell functions for the steps. Devices are named by their ACPI index.
const FUNCTIONS: &str = r#"
# eventually COMMAND...: for what happens on its own and tells nobody.
eventually() {
    for i in $(seq 600); do
        ! "$@" || return 0
        sleep 0.1
    done
    echo "not within a minute: $*" >&2
    names >&2
    exit 1
}
# Each device with its node, as the rule for udev finds them.
names() {
    for node in /sys/class/misc/ringbar*; do
        [ ! -e $node ] || echo "$(cat $node/device/acpi_index) $(basename $node)"
    done | sort
}
are() { [ $(names | wc -l) = $1 ] && [ $(ls /dev/ringbar* | wc -l) = $1 ]; }
node() { names | sed -n "s|^$1 |/dev/|p"; }
# Data that only the device $1 has.
data() { yes "device $1" | head -c 1000000; }
store() { data $1 >$(node $1); }
# Whether the device $1 has its own data, and its own size.
is_itself() {
    data $1 >/run/expected
    head -c 1000000 $(node $1) >/run/found
    cmp /run/expected /run/found || { echo "device $1 has other data" >&2; exit 1; }
    local size=$(ringbar info $(node $1) | sed -n 's/^memory: *\([0-9]*\) bytes.*/\1/p')
    [ "$size" = $((($1 - 9) << 20)) ] || { echo "device $1 has $size bytes" >&2; exit 1; }
}
"#;

/// The virtual machine and devices that the steps use.
struct Fixture {
    vm: Vm,
    devices: Vec<Device>,
    _directory: TemporaryDir,
}

/// The tests, in order. Each test begins in the state that the previous one leaves.
const STEPS: &[Step<Fixture>] = &[
    ("d1_four_devices_have_their_own_data", four),
    ("d1_unplug_of_one_leaves_the_names_of_others", unplug),
    ("d1_device_that_comes_again_is_found_by_its_id", come_again),
    ("d1_driver_bound_anew_finds_the_same_devices", rebind),
    ("d1_log_is_clean", log_is_clean),
];

/// Names of the tests.
pub fn names() -> impl Iterator<Item = String> {
    steps::names("several", STEPS)
}

/// Runs the tests; returns their results in the order of [`names`].
pub fn run(setup: &Setup, log_dir: &Path) -> Vec<StepResult> {
    steps::run(Fixture::start(setup, log_dir), STEPS)
}

/// QEMU's id of a device, and of the slot that it is in.
fn ids(number: usize) -> (String, String) {
    (format!("several{number}"), format!("slot{number}"))
}

/// What QEMU is told of a device over vfio-user.
fn vfio_user(number: usize, device: &Device) -> Value {
    let (id, slot) = ids(number);
    let mut arguments = qemu::vfio_user_device(&id, device.socket());
    arguments["bus"] = json!(slot);
    arguments["acpi-index"] = json!(number + 10);
    arguments
}

impl Fixture {
    fn start(setup: &Setup, log_dir: &Path) -> Result<Self, String> {
        let text = |error: ringbar_vm::error::Error| error.to_string();
        let directory = TemporaryDir::new().map_err(text)?;
        std::fs::create_dir_all(log_dir).map_err(|error| error.to_string())?;
        let mut devices = Vec::new();
        let mut qemu_args = Vec::new();
        for (number, transport) in TRANSPORTS.into_iter().enumerate() {
            let (id, slot) = ids(number);
            let mut extra = vec!["--keep-running".to_owned()];
            if transport == Transport::VfioUser {
                // QEMU 11.1.3 aborts when one with MSI-X is unplugged.
                extra.push("--msi-only".to_owned());
            }
            let options = DeviceOptions {
                transport,
                size: (number as u64 + 1) << 20,
                extra,
                ..DeviceOptions::default()
            };
            let log = log_dir.join(format!("{id}.log"));
            let device = Device::start(&setup.device, options, directory.path(), &id, &log);
            let device = device.map_err(text)?;
            qemu_args.extend([
                "-device".to_owned(),
                format!(
                    "pcie-root-port,id={slot},chassis={},pref64-reserve=32M",
                    number + 1
                ),
            ]);
            if transport == Transport::VhostUser {
                let vhost_user = VhostUserDevice::from(&device);
                let arguments = vhost_user.device(&id, DeviceConfig::SIZE);
                qemu_args.extend(["-chardev".to_owned(), vhost_user.chardev(&id)]);
                let place = format!("bus={slot},acpi-index={}", number + 10);
                qemu_args.extend(["-device".to_owned(), format!("{arguments},{place}")]);
            } else {
                let arguments = vfio_user(number, &device).to_string();
                qemu_args.extend(["-device".to_owned(), arguments]);
            }
            devices.push(device);
        }
        let options = VmOptions {
            devices: Vec::new(),
            qemu_args,
            log_dir: Some(log_dir.to_owned()),
            ..VmOptions::default()
        };
        Ok(Self {
            vm: Vm::start(setup, &options).map_err(text)?,
            devices,
            _directory: directory,
        })
    }

    /// Runs lines in the guest's shell. The first failure ends the script.
    fn shell(&self, lines: &str) -> StepResult {
        steps::shell(self.vm.agent(), FUNCTIONS, lines, COMMAND_TIMEOUT)
    }

    fn remove(&mut self, id: &str) -> StepResult {
        let removed = self.vm.monitor().execute("device_del", json!({ "id": id }));
        removed.map(drop).map_err(|error| error.to_string())
    }

    /// Plugs the device with this number in. QEMU may still be removing the former one.
    fn add(&mut self, number: usize) -> StepResult {
        let arguments = vfio_user(number, &self.devices[number]);
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        loop {
            match self.vm.monitor().execute("device_add", arguments.clone()) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error.to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

fn four(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        "modprobe ringbar
        eventually are 4
        names >/run/names
        for device in 10 11 12 13; do store $device; done
        for device in 10 11 12 13; do is_itself $device; done",
    )
}

fn unplug(fixture: &mut Fixture) -> StepResult {
    fixture.remove("several2")?;
    fixture.shell(
        "eventually are 3
        grep -v '^12 ' /run/names >/run/expected-names
        names | cmp - /run/expected-names
        for device in 10 11 13; do is_itself $device; done",
    )
}

/// It gets the number that is free, which is its former one.
fn come_again(fixture: &mut Fixture) -> StepResult {
    fixture.add(2)?;
    fixture.shell(
        "eventually are 4
        names | cmp - /run/names
        for device in 10 11 12 13; do is_itself $device; done",
    )
}

/// The numbers are given in another order.
fn rebind(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        "for node in /sys/class/misc/ringbar*; do basename $(readlink $node/device); done >/run/places
        for place in $(cat /run/places); do echo $place >/sys/bus/pci/drivers/ringbar/unbind; done
        eventually are 0
        for place in $(sort -r /run/places); do echo $place >/sys/bus/pci/drivers/ringbar/bind; done
        eventually are 4
        if names | cmp -s - /run/names; then echo 'the numbers are the same' >&2; exit 1; fi
        for device in 10 11 12 13; do is_itself $device; done",
    )
}

fn log_is_clean(fixture: &mut Fixture) -> StepResult {
    let log = fixture.vm.agent().kernel_log();
    let log = log.map_err(|error| error.to_string())?;
    match kernel_log::report(&log, &[]) {
        None => Ok(()),
        Some(report) => Err(report),
    }
}
