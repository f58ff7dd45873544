// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci run`: verified fio over all engines.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use ringbar_runner::report::{JobLine, RunReport};
use ringbar_runner::verified::{self, JOBS};
use ringbar_vm::agent::GuestCommand;
use ringbar_vm::device::Storage;
use ringbar_vm::error::{Error, Result};
use ringbar_vm::kernel_log;
use ringbar_vm::setup::{OutputDir, Setup};
use ringbar_vm::vm::{Vm, VmOptions};
use tempfile::TempPath;

use super::MachineOptions;

/// Maximum time for comparing DMA with the BAR map.
const BAR_CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs fio on the device with every engine, verifying all data
///
/// Prints a table and writes build/run/result.json. Exits with 0 only if all data was
/// correct, the BAR map agrees with DMA, and the kernel log has no problems.
#[derive(Debug, Args)]
pub struct Options {
    /// Run only jobs whose name contains TEXT
    #[arg(long, value_name = "TEXT")]
    job: Option<String>,

    /// Change one byte of the device memory on the host before the first reading job
    /// verifies it; the run must fail
    #[arg(long)]
    corrupt: bool,

    #[command(flatten)]
    machine: MachineOptions,
}

/// Runs the jobs.
pub fn run(setup: &Setup, options: &Options) -> anyhow::Result<ExitCode> {
    let output = OutputDir::of(setup, "run")?;
    let directory = output.path();
    let mut vm_options = VmOptions {
        log_dir: Some(directory.to_owned()),
        ..options.machine.vm()
    };
    let image = if options.corrupt {
        Some(use_file_storage(directory, &mut vm_options)?)
    } else {
        None
    };

    eprintln!(
        "Booting Linux {} in QEMU {} ({}, {})",
        setup.kernel_release, setup.qemu_version, setup.accel, options.machine.transport
    );
    let mut vm = Vm::start(setup, &vm_options)?;
    vm.load_driver()?;
    let result = run_jobs(&mut vm, options);
    let jobs = vm.with_logs(result)?;
    let result = check_bar(&vm);
    let bar_check = vm.with_logs(result)?;
    let result = vm.agent().kernel_log();
    let log = vm.with_logs(result)?;
    let complaints = kernel_log::report(&log, &[]);
    let kernel = vm.agent().kernel_release().to_owned();
    let power_off = vm.power_off();
    drop(image);

    let report = RunReport {
        kernel,
        qemu: setup.qemu_version.clone(),
        accel: setup.accel.to_string(),
        transport: options.machine.transport.to_string(),
        ok: jobs.iter().all(|job| job.failure.is_none())
            && !jobs.is_empty()
            && bar_check.is_ok()
            && complaints.is_none()
            && power_off.is_ok(),
        jobs,
        bar_check: match &bar_check {
            Ok(_) => "ok".into(),
            Err(difference) => difference.clone(),
        },
    };
    write_report(&directory.join("result.json"), &report)?;

    print!("\n{}\n", report.table());
    for job in &report.jobs {
        if let Some(failure) = &job.failure {
            println!("{}: {failure}", job.name);
        }
    }
    if let Some(complaints) = &complaints {
        println!("{complaints}");
    }
    if let Err(error) = &power_off {
        println!("{error}");
    }
    println!(
        "{}",
        last_line(&report, &bar_check, complaints.is_none(), power_off.is_ok())
    );
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Uses a file as device memory, so that the host can change it. The file is removed when
/// the result is dropped; a file left by a killed run is replaced.
fn use_file_storage(directory: &Path, vm_options: &mut VmOptions) -> anyhow::Result<TempPath> {
    let image = directory.join("device-memory");
    let file = fs::File::create(&image).with_context(|| format!("creating {}", image.display()))?;
    for device in &mut vm_options.devices {
        file.set_len(device.size)?;
        device.storage = Storage::File(image.clone());
    }
    Ok(TempPath::try_from_path(image)?)
}

fn run_jobs(vm: &mut Vm, options: &Options) -> Result<Vec<JobLine>> {
    let jobs: Vec<_> = JOBS
        .iter()
        .filter(|job| {
            options
                .job
                .as_ref()
                .is_none_or(|text| job.to_string().contains(text))
        })
        .collect();
    let mut corrupt = options.corrupt;
    let mut lines = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let name = job.to_string();
        eprint!("[{:2}/{}] {name:<42}", i + 1, jobs.len());
        let agent = std::sync::Arc::clone(vm.agent());
        let measured = verified::run(job, &agent, || {
            if !std::mem::take(&mut corrupt) {
                return Ok(());
            }
            let place = job.corruption_offset();
            eprint!("(changing byte {place}) ");
            match vm.devices().first() {
                Some(device) => device.corrupt_byte(place),
                None => Ok(()),
            }
        });
        let measured = measured.inspect_err(|_| eprintln!("failed"))?;
        match &measured.failure {
            None => eprintln!(
                "{:>10} verified, {:6.0} IOPS",
                ringbar_size::round(measured.verified_bytes),
                measured.iops
            ),
            Some(failure) => {
                eprintln!("FAILED: {}", failure.lines().next().unwrap_or_default());
            }
        }
        lines.push(JobLine::new(job, measured));
    }
    Ok(lines)
}

/// Compares DMA with the BAR map; returns a summary or the difference.
fn check_bar(vm: &Vm) -> Result<std::result::Result<String, String>> {
    let command = GuestCommand::new("ringbar-guest-tests").args(["bar-check"]);
    let output = match vm.agent().run(&command, BAR_CHECK_TIMEOUT) {
        Err(Error::Guest { message, .. }) => return Ok(Err(message)),
        other => other?,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}: {}", output.status, text(&output.stderr)))
    })
}

fn write_report(path: &Path, report: &RunReport) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report).context("writing the result as JSON")?;
    fs::write(path, json + "\n").with_context(|| format!("writing {}", path.display()))
}

/// The last line: a summary of the successes, or of the failures.
fn last_line(
    report: &RunReport,
    bar_check: &std::result::Result<String, String>,
    clean_log: bool,
    powered_off: bool,
) -> String {
    if report.ok {
        return format!(
            "passed: {} fio jobs, {} verified with crc32c without an error; the BAR map and \
             DMA agree ({}); the kernel log is clean",
            report.jobs.len(),
            ringbar_size::round(report.verified_bytes()),
            bar_check.as_deref().unwrap_or_default()
        );
    }
    let mut reasons = Vec::new();
    let failed = report.failed_jobs();
    if !failed.is_empty() {
        reasons.push(format!("verification of {}", failed.join(", ")));
    }
    if report.jobs.is_empty() {
        reasons.push("no job matches".into());
    }
    if let Err(difference) = bar_check {
        reasons.push(format!("BAR map against DMA ({difference})"));
    }
    if !clean_log {
        reasons.push("the kernel log has problems".into());
    }
    if !powered_off {
        reasons.push("the guest did not power off".into());
    }
    format!("FAILED: {}", reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbar_runner::verified::Measurement;

    fn report(failure: Option<&str>) -> RunReport {
        let measured = Measurement {
            iops: 1.0,
            verified_bytes: 1 << 20,
            verify_errors: 0,
            interrupts_per_io: 0.0,
            doorbells_per_io: 0.0,
            failure: failure.map(str::to_owned),
        };
        RunReport {
            kernel: String::new(),
            qemu: String::new(),
            accel: String::new(),
            transport: String::new(),
            jobs: vec![JobLine::new(&JOBS[0], measured)],
            bar_check: "ok".into(),
            ok: failure.is_none(),
        }
    }

    #[test]
    fn the_last_line_says_what_passed() {
        let line = last_line(&report(None), &Ok("5 bytes compared".into()), true, true);
        assert_eq!(
            line,
            "passed: 1 fio jobs, 1.0 MiB verified with crc32c without an error; the BAR map \
             and DMA agree (5 bytes compared); the kernel log is clean"
        );
    }

    #[test]
    fn the_last_line_names_everything_that_failed() {
        let line = last_line(&report(Some("x")), &Err("byte 3".into()), false, false);
        assert_eq!(
            line,
            "FAILED: verification of write-512-qd1-psync; BAR map against DMA (byte 3); \
             the kernel log has problems; the guest did not power off"
        );
    }
}
