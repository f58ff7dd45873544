// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that the driver binds its device in an unprepared guest, leaves foreign devices
//! alone, and returns the devices that it took over.
//!
//! The host adds and removes devices during these tests, so they are not part of the
//! guest's test program, which has one fixed device. All tests share one virtual machine.

use std::path::Path;
use std::time::Duration;

use ringbar_vm::device::{Device, DeviceOptions};
use ringbar_vm::kernel_log::{self, ExpectedProblem};
use ringbar_vm::qemu::VhostUserDevice;
use ringbar_vm::setup::Setup;
use ringbar_vm::temporary::TemporaryDir;
use ringbar_vm::vm::{Vm, VmOptions};
use serde_json::json;

use crate::steps::{self, Step, StepResult};

/// Maximum time for a command in the guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// Slots into which a device can be plugged.
const SLOTS: [&str; 2] = ["slot0", "slot1"];

/// Size in bytes of a foreign device's configuration: too small for Ringbar's magic.
const FOREIGN_CONFIG_SIZE: usize = 2;

/// The driver's message about a device whose `driver_override` names another driver.
const NOT_TAKEN_MESSAGE: &str = "ringbar: not taken over, its driver_override names another driver";

/// Shell functions for the steps. Devices are named by their PCI address; ours is the
/// first.
const FUNCTIONS: &str = r#"
devices() {
    for device in /sys/bus/pci/devices/*; do
        case $(cat $device/vendor $device/device) in
            0x1af4?0x1055) basename $device ;;
        esac
    done
}
driver() { readlink /sys/bus/pci/devices/$1/driver | sed 's|.*/||'; }
override() { cat /sys/bus/pci/devices/$1/driver_override; }
# expect WHAT FOUND EXPECTED
expect() { [ "$2" = "$3" ] || { echo "$1: $2 instead of $3" >&2; exit 1; }; }
# eventually COMMAND...: for what happens on its own and tells nobody.
eventually() {
    for i in $(seq 600); do
        ! "$@" || return 0
        sleep 0.1
    done
    echo "not within a minute: $*" >&2
    for device in $(devices); do echo "$device has '$(driver $device)'" >&2; done
    exit 1
}
is_with() { [ "$(driver $1)" = "$2" ]; }
are() { [ $(devices | wc -l) = $1 ]; }
ours=$(devices | sed -n 1p)
foreign=$(devices | sed -n 2p)
"#;

/// The virtual machine and devices that the steps use.
struct Fixture {
    vm: Vm,
    /// Devices for [`SLOTS`]: a Ringbar device and a foreign one.
    pluggable: [Device; SLOTS.len()],
    _foreign: Device,
    _directory: TemporaryDir,
}

/// The tests, in order. Each test begins in the state that the previous one leaves.
const STEPS: &[Step<Fixture>] = &[
    ("dr13_modprobe_takes_a_device_from_virtio_pci", modprobe),
    ("dr13_other_devices_of_the_vendor_stay", others_stay),
    ("dr13_another_kind_of_device_is_given_back", given_back),
    ("dr13_remove_and_rescan", rescan),
    ("dr13_hot_plug", hot_plug),
    ("dr13_hot_plug_of_another_kind", hot_plug_of_another_kind),
    ("dr13_driver_override_of_somebody_else_is_kept", kept),
    ("dr13_what_the_driver_says_to_type_works", typed),
    ("dr13_unload_gives_devices_back", unload),
    ("dr13_log_is_clean", log_is_clean),
];

/// Names of the tests.
pub fn names() -> impl Iterator<Item = String> {
    steps::names("binding", STEPS)
}

/// Runs the tests; returns their results in the order of [`names`].
pub fn run(setup: &Setup, log_dir: &Path) -> Vec<StepResult> {
    steps::run(Fixture::start(setup, log_dir), STEPS)
}

impl Fixture {
    fn start(setup: &Setup, log_dir: &Path) -> Result<Self, String> {
        let text = |error: ringbar_vm::error::Error| error.to_string();
        let directory = TemporaryDir::new().map_err(text)?;
        std::fs::create_dir_all(log_dir).map_err(|error| error.to_string())?;
        let device = |name: &str| {
            let options = DeviceOptions {
                size: 1 << 20,
                ..DeviceOptions::default()
            };
            let log = log_dir.join(format!("{name}.log"));
            Device::start(&setup.device, options, directory.path(), name, &log).map_err(text)
        };
        let pluggable = [device("plugged")?, device("plugged-foreign")?];
        let foreign = device("foreign")?;

        let mut qemu_args = Vec::new();
        for (chassis, slot) in (1..).zip(SLOTS) {
            qemu_args.extend([
                "-device".into(),
                format!("pcie-root-port,id={slot},chassis={chassis}"),
            ]);
        }
        let vhost_user = VhostUserDevice::from(&foreign);
        qemu_args.extend([
            "-chardev".into(),
            vhost_user.chardev("foreign"),
            "-device".into(),
            vhost_user.device("foreign", FOREIGN_CONFIG_SIZE),
        ]);
        let options = VmOptions {
            qemu_args,
            log_dir: Some(log_dir.to_owned()),
            ..VmOptions::default()
        };
        Ok(Self {
            vm: Vm::start(setup, &options).map_err(text)?,
            pluggable,
            _foreign: foreign,
            _directory: directory,
        })
    }

    /// Runs lines in the guest's shell. The first failure ends the script.
    fn shell(&self, lines: &str) -> StepResult {
        steps::shell(self.vm.agent(), FUNCTIONS, lines, COMMAND_TIMEOUT)
    }

    /// Runs a line in QEMU's human monitor, which prints errors only.
    fn monitor(&mut self, line: &str) -> StepResult {
        let arguments = json!({ "command-line": line });
        let answer = self
            .vm
            .monitor()
            .execute("human-monitor-command", arguments)
            .map_err(|error| error.to_string())?;
        match answer.as_str().map(str::trim) {
            Some("") => Ok(()),
            _ => Err(format!("{line}: {answer}")),
        }
    }

    fn plug(&mut self, number: usize, config_size: usize) -> StepResult {
        let device = VhostUserDevice::from(&self.pluggable[number]);
        let id = format!("plugged{number}");
        self.monitor(&format!("chardev-add {}", device.chardev(&id)))?;
        let option = device.device(&id, config_size);
        self.monitor(&format!("device_add {option},bus={}", SLOTS[number]))
    }
}

fn modprobe(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        r#"expect 'driver before' "$(driver $ours)" virtio-pci
        modprobe ringbar
        expect 'driver after' "$(driver $ours)" ringbar
        expect override "$(override $ours)" ringbar
        test -c /dev/ringbar0"#,
    )
}

fn others_stay(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        r#"seen=0
        for device in /sys/bus/pci/devices/*; do
            device=$(basename $device)
            case " $(devices | tr '\n' ' ') " in
                *" $device "*) continue ;;
            esac
            expect "override of $device" "$(override $device)" '(null)'
            ! is_with $device virtio-pci || seen=1
        done
        expect 'another device of the vendor' $seen 1"#,
    )
}

fn given_back(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        r#"eventually is_with $foreign virtio-pci
        expect override "$(override $foreign)" '(null)'
        ! test -e /dev/ringbar1"#,
    )
}

fn rescan(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        r#"echo 1 > /sys/bus/pci/devices/$ours/remove
        ! test -e /dev/ringbar0
        echo 1 > /sys/bus/pci/rescan
        expect driver "$(driver $ours)" ringbar
        test -c /dev/ringbar0"#,
    )
}

fn hot_plug(fixture: &mut Fixture) -> StepResult {
    fixture.plug(0, ringbar_spec::DeviceConfig::SIZE)?;
    fixture.shell("eventually test -c /dev/ringbar1")?;
    // A second device in the same slot.
    fixture.monitor("device_del plugged0-device")?;
    fixture.shell("eventually are 2; ! test -e /dev/ringbar1")
}

fn hot_plug_of_another_kind(fixture: &mut Fixture) -> StepResult {
    fixture.plug(1, FOREIGN_CONFIG_SIZE)?;
    fixture.shell(
        r#"eventually are 3
        plugged=$(devices | sed -n 3p)
        eventually is_with $plugged virtio-pci
        expect override "$(override $plugged)" '(null)'
        ! test -e /dev/ringbar1"#,
    )
}

fn kept(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        r#"echo virtio-pci > /sys/bus/pci/devices/$ours/driver_override
        echo $ours > /sys/bus/pci/drivers/ringbar/unbind
        echo $ours > /sys/bus/pci/drivers_probe
        expect driver "$(driver $ours)" virtio-pci
        rmmod ringbar
        expect 'override after unload' "$(override $ours)" virtio-pci
        modprobe ringbar
        expect 'driver after load' "$(driver $ours)" virtio-pci
        expect 'override after load' "$(override $ours)" virtio-pci"#,
    )
}

fn typed(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        r#"line=$(dmesg | sed -n 's/.*to have it: //p' | tail -n 1)
        sh -euc "$line"
        expect driver "$(driver $ours)" ringbar
        test -c /dev/ringbar0
        echo > /sys/bus/pci/devices/$ours/driver_override"#,
    )
}

fn unload(fixture: &mut Fixture) -> StepResult {
    fixture.shell(
        r#"rmmod ringbar
        echo $ours > /sys/bus/pci/drivers_probe
        modprobe ringbar
        expect 'driver after load' "$(driver $ours)" ringbar
        rmmod ringbar
        for device in $(devices); do
            expect "driver of $device" "$(driver $device)" virtio-pci
            expect "override of $device" "$(override $device)" '(null)'
        done"#,
    )
}

fn log_is_clean(fixture: &mut Fixture) -> StepResult {
    let log = fixture.vm.agent().kernel_log();
    let log = log.map_err(|error| error.to_string())?;
    let left = ExpectedProblem::Provoked {
        test: None,
        text: NOT_TAKEN_MESSAGE.into(),
        required: true,
    };
    match kernel_log::report(&log, &[left]) {
        None => Ok(()),
        Some(report) => Err(report),
    }
}
