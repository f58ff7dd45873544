// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that the guest can reboot and execute another kernel (kexec) under load, while the device's
//! process runs on.
//!
//! At the moment of a reboot, the device has reads that a rule for faults holds: it knows addresses
//! in the memory of the kernel that ends. The next kernel fills its free memory before it loads the
//! driver, and finds it unchanged after the driver and a job have used the device.
//!
//! A driver without `shutdown` fails the test of kexec over vfio-user only, where the device's log shows
//! whether it was reset. Over vhost-user the kernel stops the device itself: QEMU does so when the kernel
//! that ends disables bus mastering, and `virtio-pci` of the next kernel resets the device before the
//! memory is filled.
//!
//! The guest's test program ends with the guest, so these tests are not part of it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::machine::Transport;
use ringbar_vm::agent::{Event, GuestCommand};
use ringbar_vm::device::DeviceOptions;
use ringbar_vm::kernel_log;
use ringbar_vm::setup::Setup;
use ringbar_vm::temporary::TemporaryDir;
use ringbar_vm::vm::{SHARE_TARGET, Vm, VmOptions};
use serde_json::json;

use crate::steps::{self, Step, StepResult};

/// Maximum time for a command in the guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// Maximum time from the begin of a reboot until the guest is up.
const REBOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// Maximum time from the begin of a reboot until the guest has shut its devices down. The driver waits
/// about a second for a device at most, but the machine may be slow.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time until the device has the requests of the load.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Number of reads that the device holds, and the rule that makes it hold them.
const HELD: u64 = 64;
const HOLD: &str = "read:offset=32M..48M:latency=3600s";

/// Parameter that the command line of a kernel has if another kernel executed it. One of `ringbar.`
/// would be one of the module.
const MARK: &str = "agent.kexec";

/// What the console shows of the driver. Everything else is a problem: the console's lines have no
/// levels, and a shutdown prints nothing.
const EXPECTED_LINES: [&str; 4] = [
    "ringbar: loading out-of-tree module taints kernel.",
    "ringbar: module verification failed: ",
    "ringbar: taken over from virtio-pci",
    STARTED_LINE,
];

/// The driver has started the device.
const STARTED_LINE: &str = " bytes of device memory, interrupts by ";

/// Shell functions for the steps.
const FUNCTIONS: &str = r#"
# 8 MiB of the device, from 48 MiB on, are the data of one round.
data() { yes "data of round $1" | head -c 8388608; }
store() {
    data $1 | dd of=/dev/ringbar0 bs=1M seek=48 conv=notrunc 2>/dev/null
    sync /dev/ringbar0
}
stored() {
    data $1 >/run/expected
    dd if=/dev/ringbar0 bs=1M skip=48 count=8 2>/dev/null | cmp - /run/expected
}
requests() { cat /sys/kernel/debug/ringbar/*/requests; }
# Whether requests end beside those that the device holds.
has_progress() {
    local before=$(requests)
    for i in $(seq 600); do
        [ $(requests) -lt $((before + 200)) ] || return 0
        sleep 0.1
    done
    echo "no progress within a minute" >&2
    cat /run/busy.log >&2
    exit 1
}
# fio does not know the size of the device: an offset is possible in sequential jobs only, and then
# `size` is the end.
job() {
    name=$1
    shift
    fio --name=$name --filename=/dev/ringbar0 --direct=1 --ioengine=libaio "$@"
}
"#;

/// Starts reads that the device holds, and other requests that go on.
const LOAD: &str = "
    (job held --offset=32M --size=48M --rw=read --bs=256k --iodepth=64) </dev/null >/run/held.log 2>&1 &
    (job busy --offset=16M --size=32M --rw=rw --bs=16k --iodepth=16 \\
        --time_based --runtime=600) </dev/null >/run/busy.log 2>&1 &";

/// Writes data to the first 8 MiB, and verifies them.
const VERIFY: &str = "job verified --size=8M --rw=randwrite --bsrange=512-64k --iodepth=16 \
    --verify=crc32c --do_verify=1 >/run/verified.log || { cat /run/verified.log >&2; exit 1; }";

/// A machine that reboots.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Name, as part of the names of tests.
    pub name: &'static str,
    /// Transport of the device.
    pub transport: Transport,
    /// Whether `make test` runs it.
    pub daily: bool,
    /// Number of times for each of the tests.
    rounds: u32,
}

/// The machines.
pub const MACHINES: [Machine; 4] = [
    Machine::new("reboot", Transport::VhostUser),
    Machine::new("vfio-user::reboot", Transport::VfioUser),
    Machine {
        daily: false,
        rounds: 10,
        ..Machine::new("reboot_long", Transport::VhostUser)
    },
    Machine {
        daily: false,
        rounds: 10,
        ..Machine::new("vfio-user::reboot_long", Transport::VfioUser)
    },
];

impl Machine {
    const fn new(name: &'static str, transport: Transport) -> Self {
        Self {
            name,
            transport,
            daily: true,
            rounds: 1,
        }
    }
}

/// The tests, in order.
const STEPS: &[Step<Fixture>] = &[
    ("d4_reboot_under_load", |fixture| {
        fixture.rounds(Way::Reboot)
    }),
    ("d4_kexec_under_load", |fixture| fixture.rounds(Way::Kexec)),
    ("d4_reset_by_the_monitor_under_load", |fixture| {
        fixture.rounds(Way::Reset)
    }),
    ("d4_log_is_clean_after_reboots", log_is_clean),
];

/// Names of the tests of a machine.
pub fn names(machine: &Machine) -> impl Iterator<Item = String> + use<> {
    steps::names(machine.name, STEPS)
}

/// Runs the tests; returns their results in the order of [`names`].
pub fn run(setup: &Setup, machine: &Machine, log_dir: &Path) -> Vec<StepResult> {
    steps::run(Fixture::start(setup, machine, log_dir), STEPS)
}

/// How the guest comes to boot again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The guest shuts its devices down and resets the machine.
    Reboot,
    /// The guest shuts its devices down and executes another kernel.
    Kexec,
    /// QEMU resets the machine; the guest does nothing.
    Reset,
}

impl Way {
    /// The line that the kernel prints once its devices are shut down.
    const fn end_of_shutdown(self) -> Option<&'static str> {
        match self {
            Self::Reboot => Some("] reboot: Restarting system"),
            Self::Kexec => Some("] kexec_core: Starting new kernel"),
            Self::Reset => None,
        }
    }
}

/// The virtual machine that the steps use.
struct Fixture {
    vm: Vm,
    transport: Transport,
    rounds: u32,
    /// Number of the last round.
    round: u32,
    /// Number of times that the driver has started the device.
    starts: usize,
    /// Process of the device.
    process: u32,
    /// Kernel command line of a boot by QEMU.
    command_line: String,
    _directory: TemporaryDir,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

impl Fixture {
    fn start(setup: &Setup, machine: &Machine, log_dir: &Path) -> Result<Self, String> {
        // The kernel and the initramfs for kexec.
        let directory = TemporaryDir::new().map_err(text)?;
        for (file, name) in [
            (&setup.kernel_image, "kernel"),
            (&setup.initramfs, "initramfs"),
        ] {
            fs::copy(file, directory.path().join(name))
                .map_err(|error| format!("copying {}: {error}", file.display()))?;
        }
        let device = DeviceOptions {
            transport: machine.transport,
            size: 64 << 20,
            ..DeviceOptions::default()
        };
        let options = VmOptions {
            memory: 1 << 30,
            devices: vec![device],
            share: Some(directory.path().to_owned()),
            log_dir: Some(log_dir.to_owned()),
            ..VmOptions::default()
        };
        let mut vm = Vm::start(setup, &options).map_err(text)?;
        // By default QEMU ends when the guest reboots (`-no-reboot`).
        vm.monitor()
            .execute("set-action", json!({"reboot": "reset"}))
            .map_err(text)?;
        let control = vm.devices()[0].control();
        let command_line = vm.agent().read_text("/proc/cmdline").map_err(text)?;
        let fixture = Self {
            process: control.process().map_err(text)?,
            command_line: command_line.trim_end().to_owned(),
            vm,
            transport: machine.transport,
            rounds: machine.rounds,
            round: 0,
            starts: 1,
            _directory: directory,
        };
        fixture.shell(&format!("modprobe ringbar; store {}", fixture.round))?;
        Ok(fixture)
    }

    /// Runs lines in the guest's shell. The first failure ends the script.
    fn shell(&self, lines: &str) -> StepResult {
        steps::shell(self.vm.agent(), FUNCTIONS, lines, COMMAND_TIMEOUT)
    }

    fn rounds(&mut self, way: Way) -> StepResult {
        for round in 1..=self.rounds {
            self.reboot_under_load(way)
                .map_err(|error| format!("{way:?} {round}: {error}"))?;
        }
        Ok(())
    }

    /// The guest reboots while the device has requests. The driver is loaded before and after.
    fn reboot_under_load(&mut self, way: Way) -> StepResult {
        let control = self.vm.devices()[0].control();
        self.round += 1;
        // A round before may have failed anywhere.
        control.clear_faults().map_err(text)?;
        self.shell(&format!("modprobe ringbar; store {}", self.round))?;
        self.vm.agent().forget_boots();
        if way == Way::Kexec {
            self.load_kernel()?;
        }
        log_of_this_boot_is_clean(self)?;
        control.add_fault(HOLD.to_owned()).map_err(text)?;
        self.shell(LOAD)?;
        self.wait_for_load()?;

        match way {
            Way::Reboot => self.shut_down(way, &GuestCommand::shell("reboot -f"))?,
            Way::Kexec => {
                let execute = ["kexec", "execute"];
                let command = GuestCommand::new("ringbar-guest-tests").args(execute);
                self.shut_down(way, &command)?;
            }
            Way::Reset => {
                let reset = self.vm.monitor().execute("system_reset", json!({}));
                reset
                    .and_then(|_| self.vm.agent().wait_for_boot(REBOOT_TIMEOUT))
                    .map_err(text)?;
            }
        }
        // A kernel that was executed and crashed at once reboots, and QEMU starts the other one.
        let command_line = self.vm.agent().read_text("/proc/cmdline").map_err(text)?;
        if command_line.contains(MARK) != (way == Way::Kexec) {
            return Err(format!("another kernel runs, with `{command_line}`"));
        }
        self.starts += 1;
        self.use_device()?;
        let in_flight = control.in_flight().map_err(text)?;
        if in_flight > 0 {
            return Err(format!("the device has not ended {in_flight} requests"));
        }
        // Queues of an earlier kernel would be broken: their memory has been filled.
        let broken = control.broken_queues().map_err(text)?;
        if broken > 0 {
            return Err(format!("the device found {broken} queues broken"));
        }
        match control.process().map_err(text)? {
            process if process == self.process => Ok(()),
            other => Err(format!(
                "the device was process {}, and is {other}",
                self.process
            )),
        }
    }

    /// Runs a command that reboots, and waits until the guest is up. The device was reset and has no
    /// request any more when the kernel has shut it down: what follows resets it in any case.
    fn shut_down(&mut self, way: Way, command: &GuestCommand) -> StepResult {
        let control = self.vm.devices()[0].control();
        let before = self.console()?.len();
        let logged = self.device_log()?.len();
        let mut shut_down = Ok(());
        let rebooted = self.vm.agent().reboot(command, REBOOT_TIMEOUT, || {
            shut_down = way
                .end_of_shutdown()
                .map_or(Ok(()), |line| self.wait_for_line(before, line))
                .and_then(|()| self.was_reset(logged))
                .and_then(|()| match control.in_flight() {
                    Ok(0) => Ok(()),
                    Ok(left) => Err(format!("{left} requests are in flight after the shutdown")),
                    Err(error) => Err(error.to_string()),
                });
        });
        rebooted.map_err(text).and(shut_down)
    }

    /// Whether the device was reset, after so many bytes of its log. Without bus mastering its queues
    /// only wait, with no request in flight. Over vhost-user a device learns of no reset.
    fn was_reset(&self, logged: usize) -> StepResult {
        let log = self.device_log()?;
        let new = log.get(logged..).unwrap_or_default();
        match self.transport == Transport::VhostUser || new.contains("device reset") {
            true => Ok(()),
            false => Err("the driver has not reset the device".into()),
        }
    }

    /// The device's log.
    fn device_log(&self) -> Result<String, String> {
        let path = self.vm.console_log().with_file_name("device0.log");
        fs::read_to_string(path).map_err(text)
    }

    /// Waits for a line on the console, after so many bytes.
    fn wait_for_line(&self, before: usize, line: &str) -> StepResult {
        let start = Instant::now();
        loop {
            let console = self.console()?;
            let new = console.get(before..).unwrap_or_default();
            if new.windows(line.len()).any(|part| part == line.as_bytes()) {
                return Ok(());
            }
            if start.elapsed() >= SHUTDOWN_TIMEOUT {
                return Err(format!("no `{line}` within {SHUTDOWN_TIMEOUT:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The console's log of all boots and shutdowns.
    fn console(&self) -> Result<Vec<u8>, String> {
        fs::read(self.vm.console_log()).map_err(text)
    }

    /// Prepares the kernel that is executed.
    fn load_kernel(&mut self) -> StepResult {
        self.vm.mount_share().map_err(text)?;
        let image = |name| format!("{SHARE_TARGET}/{name}");
        let line = format!("{} {MARK}={}", self.command_line, self.round);
        let command = GuestCommand::new("ringbar-guest-tests")
            .args(["kexec", "load"])
            .args([image("kernel"), image("initramfs"), line]);
        let loaded = self.vm.agent().check(&command, COMMAND_TIMEOUT);
        loaded.map(drop).map_err(text)
    }

    /// Waits until the device holds the reads, and has completed other requests beside them.
    fn wait_for_load(&mut self) -> StepResult {
        let control = self.vm.devices()[0].control();
        let deadline = Instant::now() + LOAD_TIMEOUT;
        loop {
            let held: u64 = control
                .faults()
                .map_err(text)?
                .iter()
                .map(|f| f.firings)
                .sum();
            if held >= HELD {
                return self.shell("has_progress");
            }
            if Instant::now() >= deadline {
                return Err(format!("the device got {held} of {HELD} reads"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Loads the driver in a kernel whose memory is watched, and uses the device.
    fn use_device(&mut self) -> StepResult {
        self.shell("mkfifo /run/check")?;
        let canary = GuestCommand::new("ringbar-guest-tests").args(["canary", "/run/check"]);
        let agent = std::sync::Arc::clone(self.vm.agent());
        let mut canary = agent.start(&canary, COMMAND_TIMEOUT).map_err(text)?;
        match canary.next().map_err(text)? {
            Event::Stdout(_) => {}
            other => return Err(format!("the memory is not filled: {other:?}")),
        }
        // What the device still had it would execute from now on: no rule holds it, and the device may
        // do DMA before a driver has reset it, as some drivers let it.
        let control = self.vm.devices()[0].control();
        control.clear_faults().map_err(text)?;
        self.shell(&format!(
            "setpci -f -d 1af4:1055 COMMAND=6:6
            setpci -f -d 1af4:10f0 COMMAND=6:6
            modprobe ringbar
            stored {}
            {VERIFY}
            : >/run/check",
            self.round
        ))?;
        let output = canary.output().map_err(text)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

fn log_of_this_boot_is_clean(fixture: &Fixture) -> StepResult {
    let log = fixture.vm.agent().kernel_log().map_err(text)?;
    kernel_log::report(&log, &[]).map_or(Ok(()), Err)
}

/// The log of the last boot with its levels, and the console's of all boots and shutdowns.
fn log_is_clean(fixture: &mut Fixture) -> StepResult {
    log_of_this_boot_is_clean(fixture)?;
    let console = fixture.console()?;
    console_is_clean(&String::from_utf8_lossy(&console), fixture.starts)
}

/// The agent makes each kernel print all but debug messages on its console, which has none of the
/// driver but those of this number of starts.
fn console_is_clean(console: &str, starts: usize) -> StepResult {
    if let Some(problem) = kernel_log::problems(console, &[]).first() {
        return Err(format!("the console: {problem}"));
    }
    let is_unexpected = |line: &&str| {
        line.contains("ringbar") && !EXPECTED_LINES.iter().any(|part| line.contains(part))
    };
    if let Some(line) = console.lines().find(is_unexpected) {
        return Err(format!("the console has `{line}`"));
    }
    match console.matches(STARTED_LINE).count() {
        count if count == starts => Ok(()),
        count => Err(format!(
            "the console shows {count} of {starts} starts of the device"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_shutdown_are_problems() {
        const LOG: &str = "\
[   13.611746] ringbar: loading out-of-tree module taints kernel.\r
[   13.611981] ringbar: module verification failed: signature and/or required key missing - tainting kernel\r
[   13.714218] pci 0000:00:02.0: ringbar: taken over from virtio-pci\r
[   13.833965] ringbar 0000:00:02.0: 67108864 bytes of device memory, interrupts by 4 vectors (MsiX)\r
[   21.146491] reboot: Restarting system\r
";
        assert_eq!(console_is_clean(LOG, 1), Ok(()));
        // The console does not show what the driver prints.
        assert!(console_is_clean(LOG, 2).is_err());
        for line in [
            "[   21.1] ringbar 0000:00:02.0: the device completes no reset\r\n",
            "[   21.1] ------------[ cut here ]------------\r\n",
        ] {
            let error = console_is_clean(&format!("{LOG}{line}"), 1).unwrap_err();
            assert!(error.contains(line.trim_end()), "{error}");
        }
    }
}
