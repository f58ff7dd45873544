// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The checks at the end of a suite. Each returns the reason why it failed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringbar_guest_tests::needs::{DeviceCount, End, Needs};
use ringbar_guest_tests::pattern;
use ringbar_vm::device::PROGRAM as DEVICE;
use ringbar_vm::kernel_log::{self, ExpectedProblem};
use ringbar_vm::setup::Kernel;
use ringbar_vm::vm::Vm;

use crate::suite::device_report;
use crate::suite::pins::pins_when_idle;
use crate::suite::plan::Plan;
use crate::verified::{self, JOBS};

/// Maximum time for the daemon to exit after QEMU.
const DEVICE_EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Greatest size of a device's log in bytes. The device limits the rate of messages that a guest can
/// provoke.
const MAX_LOG: u64 = 64 << 10;

/// Further bytes for each worker of a supervised device: its start has messages of its own.
const MAX_LOG_OF_WORKER: u64 = 2 << 10;

/// The message of a worker that has started.
const WORKER_STARTED: &str = " worker is ready ";

/// Kernel parameter that disables the checker of the DMA API.
const DMA_CHECKER_OFF: &str = "dma_debug=off";

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
    /// Guest and device exited as they should.
    CleanEnd,
    /// The device counted what this test made it count.
    DeviceCounts(DeviceCount),
}

impl Check {
    /// The checks of a suite with these needs, in the order of their results.
    pub fn of(needs: &Needs, kernel: Kernel) -> Vec<Self> {
        let mut checks = vec![Self::AllTestsRan, Self::PinsBalanced];
        if matches!(needs.end, End::Killed(_)) {
            checks.push(Self::CorruptionIsFound);
        }
        if kernel == Kernel::Debug {
            if !needs.kernel_args.iter().any(|arg| arg == DMA_CHECKER_OFF) {
                checks.push(Self::DmaMappingsGone);
            }
            checks.push(Self::NothingLeaked);
        }
        checks.push(Self::KernelLogClean);
        match needs.end {
            End::Killed(_) => checks.push(Self::FileHoldsWhatWasSynced),
            End::StorageFailed(_) => checks.push(Self::CleanEnd),
            End::PowerOff(counts) => {
                checks.push(Self::CleanEnd);
                checks.extend(counts.iter().copied().map(Self::DeviceCounts));
            }
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
            Self::DeviceCounts(count) => count.check,
        }
    }
}

pub(super) fn pins(vm: &mut Vm) -> Result<(), String> {
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
pub(super) fn corruption(vm: &mut Vm) -> Result<(), String> {
    let Some(job) = JOBS.iter().find(|job| job.access.reads()) else {
        return Err("no fio job reads".into());
    };
    let agent = Arc::clone(vm.agent());
    let measured = verified::run(job, &agent, || match vm.devices().first() {
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
pub(super) fn kernel_log(vm: &Vm, plan: &Plan, alive: bool) -> Result<(), String> {
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
    let traces = plan.needs.expected_traces.iter().copied();
    expected.extend(traces.map(ExpectedProblem::Trace));
    match logs
        .iter()
        .find_map(|log| kernel_log::report(log, &expected))
    {
        None => Ok(()),
        Some(report) => Err(report),
    }
}

/// Kills the daemon with SIGKILL and compares its file with the data that the tests left.
pub(super) fn kill_and_compare(vm: &mut Vm, plan: &Plan, image: &Path) -> Result<(), String> {
    for device in vm.devices() {
        device.process().kill();
    }
    let file = File::open(image).map_err(|error| format!("{}: {error}", image.display()))?;
    let mut compared = 0;
    for range in plan.needs.end.stored() {
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

/// The exit status that a device is to have.
pub(super) fn device_status(plan: &Plan) -> i32 {
    match plan.needs.end {
        End::StorageFailed(name) => plan.tests.iter().any(|test| test == name).into(),
        End::PowerOff(_) | End::Killed(_) => 0,
    }
}

/// Powers the guest off and checks the exit status of QEMU, which is to be 0, and of the device, and
/// that no guest has filled a device's log.
pub(crate) fn shut_down(mut vm: Vm, status: i32) -> Result<(), String> {
    let logs: Vec<_> = vm
        .devices()
        .iter_mut()
        .map(|device| device.process().log().to_owned())
        .collect();
    let ended = vm
        .shut_down(DEVICE_EXIT_TIMEOUT)
        .map_err(|error| error.to_string())?;
    let mut problems = Vec::new();
    for process in ended {
        let expected = match process.name {
            DEVICE => status,
            _ => 0,
        };
        if process.status.and_then(|status| status.code()) != Some(expected) {
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
    problems.extend(logs.iter().filter_map(|log| check_size(log).err()));
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n"))
    }
}

/// Checks the size of a device's log.
fn check_size(log: &Path) -> Result<(), String> {
    let text = fs::read(log).map_err(|error| format!("{}: {error}", log.display()))?;
    let (bytes, text) = (text.len() as u64, String::from_utf8_lossy(&text));
    let workers = text.matches(WORKER_STARTED).count() as u64;
    let most = MAX_LOG + workers * MAX_LOG_OF_WORKER;
    if bytes <= most {
        return Ok(());
    }
    Err(format!(
        "{} has {bytes} bytes, more than {most}",
        log.display()
    ))
}

/// Compares a counter of the device, which must have ended, with what the test that makes
/// the device count did, if it ran.
pub(super) fn device_counts(plan: &Plan, count: &DeviceCount) -> Result<(), String> {
    let path = plan.log_dir.join("device0.log");
    let log = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let counted = device_report::count(&log, count.counter)
        .ok_or_else(|| format!("{} has no {}", path.display(), count.counter))?;
    let expected = match plan.tests.iter().any(|test| test == count.test) {
        true => count.value,
        false => 0,
    };
    if counted == expected {
        return Ok(());
    }
    Err(format!(
        "{} is {counted} instead of {expected}",
        count.counter
    ))
}

#[cfg(test)]
mod tests {
    use ringbar_agent_protocol::machine::Transport;

    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn each_suite_has_the_checks_that_fit_its_end() {
        let ordinary = Check::of(&Needs::default(), Kernel::Stock);
        assert!(ordinary.contains(&Check::CleanEnd));
        assert!(!ordinary.contains(&Check::FileHoldsWhatWasSynced));
        assert!(!ordinary.contains(&Check::NothingLeaked));

        let debug = Check::of(&Needs::default(), Kernel::Debug);
        assert!(debug.contains(&Check::NothingLeaked) && debug.contains(&Check::DmaMappingsGone));
        let no_checker = Needs {
            kernel_args: vec![DMA_CHECKER_OFF.into()],
            ..Needs::default()
        };
        assert!(!Check::of(&no_checker, Kernel::Debug).contains(&Check::DmaMappingsGone));

        let killed = Needs {
            end: End::Killed(Vec::new()),
            ..Needs::default()
        };
        let killed = Check::of(&killed, Kernel::Stock);
        assert!(killed.contains(&Check::FileHoldsWhatWasSynced));
        assert!(killed.contains(&Check::CorruptionIsFound) && !killed.contains(&Check::CleanEnd));
    }

    #[test]
    fn a_log_has_a_greatest_size() {
        let log = tempfile::NamedTempFile::new().unwrap();
        log.as_file().set_len(MAX_LOG).unwrap();
        assert_eq!(check_size(log.path()), Ok(()));
        log.as_file().set_len(MAX_LOG + 1).unwrap();
        assert!(check_size(log.path()).is_err());
        // With a worker there may be more.
        let write = |offset, text: &[u8]| log.as_file().write_all_at(text, offset).unwrap();
        write(0, WORKER_STARTED.as_bytes());
        assert_eq!(check_size(log.path()), Ok(()));
        log.as_file()
            .set_len(MAX_LOG + MAX_LOG_OF_WORKER + 1)
            .unwrap();
        assert!(check_size(log.path()).is_err());
        assert!(check_size(Path::new("/nowhere/device0.log")).is_err());
    }

    #[test]
    fn a_counter_is_compared_with_what_ran() {
        const COUNT: DeviceCount = DeviceCount {
            check: "b7_counted",
            counter: "flushes",
            test: "b7_flush",
            value: 3,
        };
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("device0.log");
        let plan = |tests: &[&str]| Plan {
            suite: "x",
            needs: Needs {
                end: End::PowerOff(&[COUNT]),
                ..Needs::default()
            },
            kernel: Kernel::Stock,
            transport: Transport::VhostUser,
            tests: tests.iter().map(|&test| test.into()).collect(),
            provoked: Vec::new(),
            log_dir: directory.path().to_owned(),
        };
        let check = Check::of(&plan(&[]).needs, Kernel::Stock).pop();
        assert_eq!(check.map(Check::name), Some("b7_counted"));

        assert!(device_counts(&plan(&[]), &COUNT).is_err(), "no log");
        fs::write(&log, "x INFO y: done requests=9 flushes=3\n").unwrap();
        assert_eq!(device_counts(&plan(&["a", "b7_flush"]), &COUNT), Ok(()));
        let error = device_counts(&plan(&["a"]), &COUNT).unwrap_err();
        assert_eq!(error, "flushes is 3 instead of 0");
        fs::write(&log, "x INFO y: done requests=9\n").unwrap();
        assert!(device_counts(&plan(&["b7_flush"]), &COUNT).is_err());
    }
}
