// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs a suite of the guest's tests in a virtual machine of its own.
//!
//! A suite ends with checks, which are tests themselves: all planned tests ran, no page
//! is still pinned, the kernel log has no problems, the device exited cleanly. Results
//! are sent as they arrive. The end of the channel means that no further result comes,
//! whatever the reason.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::ExitStatus;
use ringbar_guest_tests::case::Provoked;
use ringbar_guest_tests::pattern;
use ringbar_guest_tests::suites::{bounce, durability, large, lies};
use serde_json::json;

use crate::agent::{Event, GuestCommand};
use crate::counters::pins_when_idle;
use crate::debug;
use crate::device::{DeviceOptions, Storage};
use crate::device_report;
use crate::error::{Error, Result};
use crate::fio::JOBS;
use crate::kernel_log::{self, ExpectedProblem};
use crate::ktap::{Outcome, Parser, TestResult};
use crate::process;
use crate::setup::{Kernel, Setup};
use crate::vm::{Vm, VmOptions};

/// Maximum time without output from the guest, and so for one test. A test takes up to
/// two minutes on the debug kernel.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(600);

/// Interval without output after which the harness checks that the device still runs.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum time for a suite.
const SUITE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Maximum time for the daemon to exit after QEMU.
const DEVICE_EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Name of the suite whose device keeps its memory in a file, which is compared
/// with what its tests wrote.
const DURABILITY: &str = "durability";

/// Name of the suite whose device is on a disk.
const BLOCK: &str = "block";

/// Name of the suite that counts doorbells.
const ASYNC: &str = "async";

/// Name of the suite in which allocations fail.
const FAULTS: &str = "faults";

/// Stops the C library from registering restartable sequences. The kernel writes to their
/// area when it migrates a thread; after a fork that write copies the page, and the
/// kernel kills the thread if the allocation fails.
const NO_RSEQ: (&str, &str) = ("GLIBC_TUNABLES", "glibc.pthread.rseq=0");

/// Name of the suite whose durable writes are counted.
const FILES: &str = "files";

/// Name of the suite whose guest has few bounce buffers, and uses them for everything.
const BOUNCE: &str = "bounce";

/// Bytes of a bounce buffer (`IO_TLB_SIZE` of `include/linux/swiotlb.h`).
const IO_TLB_SIZE: usize = 2048;

/// Name of the suite whose device lies.
const LIES: &str = "lies";

/// Name of the suite whose device is a PCI function with registers of its own.
const FUNCTION: &str = "function";

/// Name of the suite in which the machine sleeps.
const SUSPEND: &str = "suspend";

/// The disk that the memory of a sleeping machine is written to.
const SWAP_FILE: &str = "swap";

/// Size of that disk in bytes: half of the guest's memory, the most that an image takes.
const SWAP_FILE_SIZE: u64 = 1 << 30;

/// Name of the suite that needs a large device.
const LARGE: &str = "large";

/// The kernel's warning after a failed allocation: `register_irq_proc` ignores that a
/// file in /proc/irq could not be created, and the kernel misses the file when the
/// interrupt is freed.
const IRQ_PROC_WARNING: ExpectedProblem =
    ExpectedProblem::Trace(&["at remove_proc_entry+", " unregister_irq_proc+"]);

/// One of the checks at the end of a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The guest reported a result for each test it was to run.
    AllTestsRan,
    /// As many pages were released as were pinned.
    PinsBalanced,
    /// No page is mapped for DMA any more, and no mapping was misused.
    DmaMappingsGone,
    /// The module leaves nothing behind when it is unloaded.
    NothingLeaked,
    /// A changed byte in the device memory makes a verifying fio job fail.
    CorruptionIsFound,
    /// The kernel log holds no problem.
    KernelLogClean,
    /// Durable data is in the file, also after the daemon is killed.
    FileHoldsWhatWasSynced,
    /// Guest and device exited cleanly.
    CleanEnd,
    /// The device was told which writes are durable.
    DurableWritesCounted,
}

impl Check {
    /// The checks of a suite, in the order of their results.
    pub fn of(suite: &str, kernel: Kernel) -> Vec<Self> {
        let mut checks = vec![Self::AllTestsRan, Self::PinsBalanced];
        if suite == DURABILITY {
            checks.push(Self::CorruptionIsFound);
        }
        if kernel == Kernel::Debug {
            // The DMA API checker is disabled in this suite.
            if suite != FAULTS {
                checks.push(Self::DmaMappingsGone);
            }
            checks.push(Self::NothingLeaked);
        }
        checks.push(Self::KernelLogClean);
        checks.push(if suite == DURABILITY {
            Self::FileHoldsWhatWasSynced
        } else {
            Self::CleanEnd
        });
        if suite == FILES {
            checks.push(Self::DurableWritesCounted);
        }
        checks
    }

    /// Name of the test.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllTestsRan => "all_tests_ran",
            Self::PinsBalanced => "b2_pins_are_balanced",
            Self::DmaMappingsGone => "c1_no_dma_mapping_is_left_or_misused",
            Self::NothingLeaked => "nothing_is_leaked",
            Self::CorruptionIsFound => "fio_finds_a_byte_changed_on_the_host",
            Self::KernelLogClean => "kernel_log_is_clean",
            Self::FileHoldsWhatWasSynced => "b7_file_on_the_host_holds_what_was_synced",
            Self::CleanEnd => "guest_and_device_end_in_order",
            Self::DurableWritesCounted => "b7_device_counts_the_durable_writes",
        }
    }
}

/// The tests to run of a suite.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the suite.
    pub suite: &'static str,
    /// The kernel, which must be the set-up's.
    pub kernel: Kernel,
    /// Names of the tests, in order.
    pub tests: Vec<String>,
    /// The lines that tests provoke in the kernel log, each with its test.
    pub provoked: Vec<(String, Provoked)>,
    /// Directory of the logs.
    pub log_dir: PathBuf,
}

/// Result of a test or check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Name of the test or check.
    pub name: String,
    /// Outcome.
    pub outcome: Outcome,
    /// Message.
    pub message: String,
}

/// Runs a suite and sends its results until the sender is dropped. A missing result means
/// that the test was not reached, for the reason that [`Check::AllTestsRan`] gives.
pub fn run(setup: &Setup, plan: &Plan, results: &Sender<Report>) {
    let send = |name: &str, result: std::result::Result<(), String>| {
        let (outcome, message) = match result {
            Ok(()) => (Outcome::Passed, String::new()),
            Err(message) => (Outcome::Failed, message),
        };
        // The receiver may be gone.
        let _ = results.send(Report {
            name: name.to_owned(),
            outcome,
            message,
        });
    };
    let check = |check: Check, result| send(check.name(), result);

    let image = plan.log_dir.join("device-memory");
    let vm = options(plan, &image)
        .and_then(|options| Vm::start(setup, &options))
        .and_then(|mut vm| {
            if plan.kernel == Kernel::Debug {
                debug::prepare(vm.agent())?;
            }
            vm.load_driver().map(|()| vm)
        });
    let mut vm = match vm {
        Ok(vm) => vm,
        Err(error) => return check(Check::AllTestsRan, Err(error.to_string())),
    };

    let ran = run_tests(&mut vm, plan, results);
    let alive = ran.is_ok();
    check(Check::AllTestsRan, ran);
    if alive {
        check(Check::PinsBalanced, check_pins(&mut vm));
        if plan.suite == DURABILITY {
            check(Check::CorruptionIsFound, check_corruption(&mut vm));
        }
        if plan.kernel == Kernel::Debug {
            if plan.suite != FAULTS {
                check(Check::DmaMappingsGone, debug::dma_mappings(vm.agent()));
            }
            check(Check::NothingLeaked, debug::unload_and_scan(vm.agent()));
        }
    }
    check(Check::KernelLogClean, check_kernel_log(&vm, plan, alive));
    if plan.suite == DURABILITY {
        if alive {
            let synced = kill_and_compare(&mut vm, plan, &image);
            check(Check::FileHoldsWhatWasSynced, synced);
        }
        drop(vm);
        // Only the logs are kept, not the device image.
        let _ = fs::remove_file(&image);
    } else if alive {
        check(Check::CleanEnd, shut_down(vm));
        // Only the logs are kept, neither the device image nor the swap file.
        let _ = fs::remove_file(&image);
        let _ = fs::remove_file(plan.log_dir.join(SWAP_FILE));
        if plan.suite == FILES {
            check(Check::DurableWritesCounted, device_report::durable(plan));
        }
    }
}

/// The virtual machine of a suite.
fn options(plan: &Plan, image: &Path) -> Result<VmOptions> {
    let mut device = DeviceOptions::default();
    let mut kernel_args = match plan.kernel {
        Kernel::Stock => Vec::new(),
        Kernel::Debug => debug::KERNEL_ARGS.map(str::to_owned).to_vec(),
    };
    if plan.suite == DURABILITY {
        device.size = 64 << 20;
        fs::create_dir_all(&plan.log_dir)
            .map_err(Error::io(format!("creating {}", plan.log_dir.display())))?;
        File::create(image)
            .and_then(|file| file.set_len(device.size))
            .map_err(Error::io(format!("creating {}", image.display())))?;
        device.storage = Storage::File(image.to_owned());
    }
    if plan.suite == BLOCK {
        device.size = 64 << 20;
        fs::create_dir_all(&plan.log_dir)
            .map_err(Error::io(format!("creating {}", plan.log_dir.display())))?;
        device.storage = Storage::Block(image.to_owned());
    }
    if plan.suite == FAULTS {
        // Probe allocates memory for each entry, and the suite fails each allocation
        // once. Few entries still cover every line of the driver.
        device.queues = 1;
        device.queue_size = 8;
        // A failed allocation disables the DMA API checker with a warning, and ACPI
        // methods have a hundred allocations of their own in each probe.
        kernel_args.extend(["dma_debug=off", "pci=noacpi"].map(str::to_owned));
    }
    if plan.suite == ASYNC {
        // The suite counts doorbells, and a busy-polling device needs few.
        device.extra = vec!["--poll-us=0".into()];
    }
    if plan.suite == BOUNCE {
        // One area, so that every CPU can use all bounce buffers.
        kernel_args.push(format!("swiotlb={},1,force", bounce::BYTES / IO_TLB_SIZE));
    }
    if plan.suite == LIES {
        device.lies = true;
        device.queue_size = lies::QUEUE_SIZE;
    }
    if plan.suite == LARGE {
        device.size = large::DEVICE;
    }
    let qemu_args = match plan.suite == SUSPEND {
        true => disk(&plan.log_dir.join(SWAP_FILE))?,
        false => Vec::new(),
    };
    let pci_function = plan.suite == FUNCTION;
    Ok(VmOptions {
        devices: if pci_function {
            Vec::new()
        } else {
            vec![device]
        },
        pci_function,
        kernel_args,
        qemu_args,
        suspends: plan.suite == SUSPEND,
        log_dir: Some(plan.log_dir.clone()),
        ..VmOptions::default()
    })
}

/// QEMU's arguments for an empty disk in this file.
fn disk(file: &Path) -> Result<Vec<String>> {
    let directory = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)
        .and_then(|()| File::create(file))
        .and_then(|disk| disk.set_len(SWAP_FILE_SIZE))
        .map_err(Error::io(format!("creating {}", file.display())))?;
    let drive = json!({
        "driver": "file",
        "filename": file.display().to_string(),
        "node-name": "swap",
    });
    let device = json!({"driver": "virtio-blk-pci", "drive": "swap"});
    Ok(vec![
        "-blockdev".into(),
        drive.to_string(),
        "-device".into(),
        device.to_string(),
    ])
}

/// Runs the tests in the guest; an error says why some did not run.
fn run_tests(
    vm: &mut Vm,
    plan: &Plan,
    results: &Sender<Report>,
) -> std::result::Result<(), String> {
    let mut reader = LineReader::new();
    let followed = read_results(vm, plan, &mut reader, results);
    let stalled = vm.resume_devices();
    if let Err(error) = &followed
        && error.is_timeout()
    {
        // The log of a hanging guest shows where its tasks wait.
        let blocked = GuestCommand::shell("echo w > /proc/sysrq-trigger");
        let _ = vm.agent().run(&blocked, Duration::from_secs(10));
    }
    let status = vm.with_logs(followed).map_err(|error| {
        let mut message = error.to_string();
        for line in reader.parser.pending() {
            let _ = write!(message, "\n{line}");
        }
        message
    })?;
    let mut problems = Vec::new();
    let pending = reader.parser.pending().join("\n");
    for problem in reader.parser.finish() {
        problems.push(problem.to_string());
    }
    // Status 1 means that a test failed, which its own result reports.
    if !matches!(status, ExitStatus::Exited(0 | 1)) {
        problems.push(format!("the test program ended with {status}"));
    }
    if !stalled.is_empty() {
        problems.push(format!("the tests left devices stalled: {stalled:?}"));
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.push(pending);
    Err(problems.join("\n"))
}

/// Sends results until the guest's test program ends.
fn read_results(
    vm: &mut Vm,
    plan: &Plan,
    reader: &mut LineReader,
    results: &Sender<Report>,
) -> Result<ExitStatus> {
    let mut command = GuestCommand::new("ringbar-guest-tests")
        .args(["run", plan.suite])
        .args(plan.tests.iter().cloned());
    if plan.suite == FAULTS {
        let (name, value) = NO_RSEQ;
        command = command.env(name, value);
    }
    let agent = std::sync::Arc::clone(vm.agent());
    let mut running = agent.start(&command, 2 * SUITE_TIMEOUT)?;
    let begun = Instant::now();
    let mut heard = begun;
    let timeout = |what: &str, after| {
        Err(Error::Timeout {
            what: format!("{what} of suite {}", plan.suite),
            after,
        })
    };
    loop {
        if begun.elapsed() >= SUITE_TIMEOUT {
            return timeout("the end", SUITE_TIMEOUT);
        }
        let event = match running.next_timeout(LIVENESS_INTERVAL) {
            Err(error) if error.is_timeout() => {
                vm.check_devices("the guest ran tests on it")?;
                if heard.elapsed() >= OUTPUT_TIMEOUT {
                    return timeout("the next result", OUTPUT_TIMEOUT);
                }
                continue;
            }
            event => event?,
        };
        heard = Instant::now();
        match event {
            Event::Stdout(bytes) => {
                for result in reader.push(&bytes) {
                    // The receiver may be gone.
                    let _ = results.send(report(result, vm.console_log()));
                }
            }
            Event::Stderr(bytes) => reader.messages(&bytes),
            Event::Exited(status) => return Ok(status),
        }
    }
}

/// Adds the last lines of the kernel log to a failure.
fn report(result: TestResult, console_log: &Path) -> Report {
    const LINES: usize = 12;
    let mut message = result.diagnostics.join("\n");
    if result.outcome == Outcome::Failed {
        let _ = write!(
            message,
            "\n--- last lines of the kernel log ---\n{}",
            process::tail(console_log, LINES)
        );
    }
    Report {
        name: result.name,
        outcome: result.outcome,
        message,
    }
}

/// Cuts the guest's output into lines for the parser.
struct LineReader {
    parser: Parser,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl LineReader {
    fn new() -> Self {
        Self {
            parser: Parser::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }

    /// Takes standard output; returns the results that it completes.
    fn push(&mut self, bytes: &[u8]) -> Vec<TestResult> {
        self.stdout.extend_from_slice(bytes);
        take_lines(&mut self.stdout)
            .iter()
            .filter_map(|line| self.parser.line(line))
            .collect()
    }

    /// Takes standard error, which becomes part of the next result.
    fn messages(&mut self, bytes: &[u8]) {
        self.stderr.extend_from_slice(bytes);
        for line in take_lines(&mut self.stderr) {
            self.parser.line(&format!("# {line}"));
        }
    }
}

/// Takes the complete lines out of a buffer.
fn take_lines(buffer: &mut Vec<u8>) -> Vec<String> {
    let Some(end) = buffer.iter().rposition(|&byte| byte == b'\n') else {
        return Vec::new();
    };
    let rest = buffer.split_off(end + 1);
    let complete = std::mem::replace(buffer, rest);
    String::from_utf8_lossy(&complete)
        .lines()
        .map(str::to_owned)
        .collect()
}

fn check_pins(vm: &mut Vm) -> std::result::Result<(), String> {
    let result = pins_when_idle(vm.agent());
    let pins = vm.with_logs(result).map_err(|error| error.to_string())?;
    if pins.balanced() {
        return Ok(());
    }
    Err(format!(
        "{} pages were pinned, {} released",
        pins.acquired, pins.released
    ))
}

/// Checks that fio detects a corrupted byte.
fn check_corruption(vm: &mut Vm) -> std::result::Result<(), String> {
    let Some(job) = JOBS.iter().find(|job| job.access.reads()) else {
        return Err("no fio job reads".into());
    };
    let agent = std::sync::Arc::clone(vm.agent());
    let measured = job.run(&agent, || match vm.devices().first() {
        Some(device) => device.corrupt_byte(job.corruption_offset()),
        None => Ok(()),
    });
    let measured = vm.with_logs(measured).map_err(|error| error.to_string())?;
    match measured.verify_errors {
        1 => Ok(()),
        errors => Err(format!(
            "one byte was changed, fio found {errors} wrong blocks ({:?})",
            measured.failure
        )),
    }
}

/// Checks the kernel's own log, if the guest can still send it, and the console's log,
/// which has the last lines of a crashed kernel.
fn check_kernel_log(vm: &Vm, plan: &Plan, alive: bool) -> std::result::Result<(), String> {
    let console = fs::read(vm.console_log()).map_err(|error| error.to_string())?;
    let mut logs = vec![String::from_utf8_lossy(&console).into_owned()];
    if alive {
        logs.push(vm.agent().kernel_log().map_err(|error| error.to_string())?);
    }
    let mut expected: Vec<_> = plan
        .provoked
        .iter()
        .map(|(test, provoked)| ExpectedProblem::Provoked {
            test: Some(test.clone()),
            text: provoked.text.to_owned(),
            required: provoked.required,
        })
        .collect();
    if plan.suite == FAULTS {
        expected.push(IRQ_PROC_WARNING);
    }
    match logs
        .iter()
        .find_map(|log| kernel_log::report(log, &expected))
    {
        None => Ok(()),
        Some(report) => Err(report),
    }
}

/// Kills the daemon with SIGKILL and compares the file with the data that the tests made
/// durable.
fn kill_and_compare(vm: &mut Vm, plan: &Plan, image: &Path) -> std::result::Result<(), String> {
    for device in vm.devices() {
        device.process().kill();
    }
    let file = File::open(image).map_err(|error| format!("{}: {error}", image.display()))?;
    let mut compared = 0;
    for range in durability::ranges() {
        if !plan.tests.iter().any(|test| test == range.test) {
            continue;
        }
        let mut found = vec![0; range.length];
        file.read_exact_at(&mut found, range.offset)
            .map_err(|error| format!("{}: {error}", image.display()))?;
        let expected = pattern::bytes(range.seed, range.length);
        if let Some(difference) = pattern::difference(&found, expected) {
            return Err(format!(
                "{}: bytes {} and following of the file: {difference}",
                range.test, range.offset
            ));
        }
        compared += 1;
    }
    if compared == 0 && plan.tests.len() > 1 {
        return Err("no test left anything to compare".into());
    }
    Ok(())
}

/// Powers the guest off and checks the exit status of QEMU and the device.
fn shut_down(vm: Vm) -> std::result::Result<(), String> {
    let ended = vm
        .shut_down(DEVICE_EXIT_TIMEOUT)
        .map_err(|error| error.to_string())?;
    let mut problems = Vec::new();
    for process in ended {
        if !process.status.is_some_and(|status| status.success()) {
            problems.push(format!(
                "{} {}\n{}",
                process.name,
                process.status.map_or_else(
                    || "did not end".to_owned(),
                    |status| format!("ended with {status}")
                ),
                process.tail
            ));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_in_pieces_makes_whole_lines() {
        let mut reader = LineReader::new();
        assert_eq!(
            reader.push(b"KTAP version 1\n1..2\nok 1 a\nnot o"),
            [TestResult {
                name: "a".into(),
                outcome: Outcome::Passed,
                diagnostics: Vec::new(),
            }]
        );
        reader.messages(b"thread panicked\nat");
        let results = reader.push(b"k 2 b\n");
        assert_eq!(results[0].outcome, Outcome::Failed);
        assert_eq!(results[0].diagnostics, ["thread panicked"]);
        assert_eq!(reader.parser.finish(), []);
    }

    #[test]
    fn failures_carry_the_kernel_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "[1.0] ringbar: broken\n").unwrap();
        let result = TestResult {
            name: "x".into(),
            outcome: Outcome::Failed,
            diagnostics: vec!["byte 3".into()],
        };
        let text = report(result, &log).message;
        assert!(text.starts_with("byte 3\n---"), "{text}");
        assert!(text.ends_with("ringbar: broken"), "{text}");
    }

    #[test]
    fn each_suite_has_the_checks_that_fit_its_device() {
        let data = Check::of("data", Kernel::Stock);
        assert!(data.contains(&Check::CleanEnd));
        assert!(!data.contains(&Check::FileHoldsWhatWasSynced));
        assert!(!data.contains(&Check::NothingLeaked));
        assert!(Check::of("data", Kernel::Debug).contains(&Check::NothingLeaked));
        let durability = Check::of(DURABILITY, Kernel::Stock);
        assert!(durability.contains(&Check::FileHoldsWhatWasSynced));
        assert!(Check::of(FILES, Kernel::Stock).contains(&Check::DurableWritesCounted));
        for name in [BOUNCE, DURABILITY, FILES, FUNCTION, LARGE, LIES, SUSPEND] {
            assert!(
                ringbar_guest_tests::suites::all()
                    .iter()
                    .any(|suite| suite.name == name)
            );
        }
    }
}
