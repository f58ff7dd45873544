// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci bench`: Ringbar against the other virtual disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use ringbar_agent_protocol::machine::{TRANSPORT_VARIABLE, Transport};
use ringbar_bench::column::Column;
use ringbar_bench::idle::Idle;
use ringbar_bench::instructions::{self, InstructionCounter};
use ringbar_bench::jobs::{self, Selection};
use ringbar_bench::machine::{CPUS, Machine, MachineOptions};
use ringbar_bench::measure::BenchContext;
use ringbar_bench::module::AddressRange;
use ringbar_bench::plot;
use ringbar_bench::report::{Environment, Report};
use ringbar_bench::results::Results;
use ringbar_bench::rounds::{self, Schedule};
use ringbar_vm::error::Result;
use ringbar_vm::setup::{OutputDir, Setup};

/// Run time of the warm-up before a job's first round.
const WARM_UP: Duration = Duration::from_millis(300);

/// Time for which the idle devices are measured.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// Compares the device with virtio-blk, vhost-user-blk and NVMe by fio
///
/// Prints tables and writes result.json, result.svg and result.png to build/bench.
/// Exits with 0 whatever the figures are, unless --check is given.
#[derive(Debug, Args)]
pub struct Options {
    /// Jobs, separated by commas, for example randread-4k-qd32-io_uring, or names of
    /// lists: targets (the default), sweep, lean
    #[arg(long, env = "RINGBAR_JOB", value_name = "LIST")]
    job: Option<String>,

    /// Devices to measure, separated by commas, for example ringbar,nvme
    #[arg(
        long,
        env = "RINGBAR_DEVICES",
        value_name = "LIST",
        value_delimiter = ','
    )]
    devices: Vec<String>,

    /// Number of rounds
    #[arg(long, env = "RINGBAR_ROUNDS", value_name = "N", default_value = "5",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Run time of each job on each device in each round, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_time)]
    seconds: Duration,

    /// Protocol between the device and QEMU: `vhost-user` or `vfio-user`
    #[arg(long, env = TRANSPORT_VARIABLE, value_name = "NAME", default_value_t)]
    transport: Transport,

    /// Argument for the guest's kernel, for example ringbar.poll_us=0; may be given
    /// several times
    #[arg(long = "kernel-arg", value_name = "ARG")]
    kernel_args: Vec<String>,

    /// Argument for ringbar-device, for example --poll-us=0; may be given several times
    #[arg(long = "device-arg", value_name = "ARG", allow_hyphen_values = true)]
    device_args: Vec<String>,

    /// Whether to count the guest's instructions for each transfer as well: on or off.
    /// Needs TCG and --plugin
    #[arg(long, env = "RINGBAR_INSTRUCTIONS", value_name = "on|off", default_value = "on",
          value_parser = parse_switch, action = clap::ArgAction::Set)]
    instructions: bool,

    /// Number of counts of the instructions of each job on each device; the table has their
    /// median
    #[arg(long, env = "RINGBAR_INSTRUCTION_ROUNDS", value_name = "N", default_value = "3",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    instruction_rounds: u32,

    /// QEMU plugin that counts instructions, built by ci/bench/plugin/build.sh
    #[arg(long, env = "RINGBAR_PLUGIN", value_name = "FILE")]
    plugin: Option<PathBuf>,

    /// Exit with status 1 if a target is missed
    #[arg(long)]
    check: bool,
}

fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| (Duration::from_millis(100)..=Duration::from_secs(60)).contains(time))
        .ok_or_else(|| "a number of seconds from 0.1 to 60".into())
}

fn parse_switch(text: &str) -> std::result::Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".into()),
    }
}

impl Options {
    /// Options of the machine.
    fn machine<'a>(&'a self, log_dir: &'a Path, qemu_args: &'a [String]) -> MachineOptions<'a> {
        MachineOptions {
            transport: self.transport,
            kernel_args: &self.kernel_args,
            device_args: &self.device_args,
            qemu_args,
            log_dir,
        }
    }

    /// The requested jobs and columns.
    fn selection(&self) -> anyhow::Result<Selection> {
        // An empty value of an environment variable means none.
        let list = self.job.as_deref().filter(|list| !list.trim().is_empty());
        let mut selection = jobs::select(list.unwrap_or(jobs::TARGETS))?;
        let devices: Vec<_> = self
            .devices
            .iter()
            .map(|name| name.trim())
            .filter(|name| !name.is_empty())
            .collect();
        if !devices.is_empty() {
            let mut columns = devices
                .iter()
                .map(|name| name.parse())
                .collect::<std::result::Result<Vec<Column>, _>>()
                .map_err(anyhow::Error::msg)?;
            columns.sort_unstable();
            columns.dedup();
            selection.columns = columns;
        }
        Ok(selection)
    }
}

/// Runs the jobs.
pub fn run(setup: &Setup, options: &Options) -> anyhow::Result<ExitCode> {
    let selection = options.selection()?;
    let output = OutputDir::of(setup, "bench")?;
    let directory = output.path();

    let plugin = instructions::plugin(options.instructions, setup.accel, options.plugin.as_deref());
    let mut results = Results::default();
    let mut machine = Machine::start(setup, &options.machine(directory, &[]))?;
    let measured = machine.run(&selection.columns, |bench| {
        measure(bench, &selection, options, &mut results)
    });
    let (idle, mut failure) = match measured {
        Ok(idle) => (Some(idle), None),
        Err(error) => (None, Some(anyhow::Error::from(error))),
    };
    let environment = Environment {
        kernel: machine.kernel_release().to_owned(),
        qemu: setup.qemu_version.clone(),
        accel: setup.accel.to_string(),
        transport: options.transport.to_string(),
        host_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        guest_cpus: CPUS,
        device_size: machine.device_size(),
        peer_access: machine.peer_access().to_owned(),
        rounds: options.rounds,
        seconds: options.seconds.as_secs_f64(),
        instruction_rounds: options.instruction_rounds,
        instructions_not_counted: plugin.err(),
    };
    match failure {
        None => failure = machine.end().err(),
        Some(_) => drop(machine),
    }
    if failure.is_none() {
        match plugin {
            Ok(plugin) => {
                let counted =
                    count_instructions(setup, options, directory, plugin, &selection, &mut results);
                failure = counted.err();
            }
            Err(reason) => eprintln!("Instructions are not counted: {reason}"),
        }
    }
    // Results from before a failure are kept.
    let report = Report::new(environment, &results, idle);
    if failure.is_none() || !results.lines().is_empty() {
        write(directory, &report)?;
        print!("\n{}", report.text());
    }
    match failure {
        Some(error) => Err(error),
        None if options.check && !report.all_met() => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Runs the jobs, one after the other, and measures the idle devices.
fn measure(
    bench: &BenchContext<'_>,
    selection: &Selection,
    options: &Options,
    results: &mut Results,
) -> Result<Idle> {
    let schedule = Schedule {
        rounds: options.rounds,
        time: options.seconds,
        warm_up: WARM_UP,
    };
    for (i, job) in selection.jobs.iter().enumerate() {
        eprintln!("[{:2}/{}] {job}", i + 1, selection.jobs.len());
        let mut last = 0;
        let samples = rounds::run(
            *job,
            &selection.columns,
            schedule,
            |round, column, job, time| {
                let sample = bench.measure(column, job, time)?;
                if round != 0 {
                    if round != last {
                        eprint!(
                            "{}        round {round}:",
                            if last == 0 { "" } else { "\n" }
                        );
                        last = round;
                    }
                    eprint!(" {column} {:.0}", sample.iops);
                }
                Ok(sample)
            },
        );
        eprintln!();
        results.add(&samples?);
    }
    let watched: Vec<_> = [Column::Ringbar, Column::VhostUserBlk]
        .into_iter()
        .filter_map(|column| Some((column, *bench.daemons.get(&column)?)))
        .collect();
    Idle::measure(bench.agent, &watched, IDLE_TIME)
}

/// Counts the instructions of each job on each device in rounds, in a machine with the
/// plugin.
fn count_instructions(
    setup: &Setup,
    options: &Options,
    directory: &Path,
    plugin: &Path,
    selection: &Selection,
    results: &mut Results,
) -> anyhow::Result<()> {
    eprintln!("Counting instructions");
    let counter = InstructionCounter::new()?;
    let arguments = counter.qemu_arguments(plugin);
    let log_dir = directory.join("instructions");
    let mut machine = Machine::start(setup, &options.machine(&log_dir, &arguments))
        .context("starting QEMU with its plugin; --instructions off does without")?;
    machine.run(&selection.columns, |bench| {
        let driver = AddressRange::of_driver(bench.agent)?;
        for (i, job) in selection.jobs.iter().enumerate() {
            eprint!("[{:2}/{}] {job}", i + 1, selection.jobs.len());
            let (columns, rounds) = (&selection.columns, options.instruction_rounds);
            let mut last = 0;
            let counted = rounds::alternate(*job, columns, rounds, |round, column, job| {
                let count = counter.per_transfer(bench, column, job, driver)?;
                if round != last {
                    eprint!("\n        round {round}:");
                    last = round;
                }
                if let Some(count) = count {
                    eprint!(" {column} {:.0}", count.all);
                    if let Some(module) = count.module {
                        eprint!(" (module {module:.0})");
                    }
                }
                Ok(count)
            });
            eprintln!();
            for (column, values) in counted? {
                results.add_instructions(*job, column, &values);
            }
        }
        Ok(())
    })?;
    machine.end()
}

fn write(directory: &Path, report: &Report) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report).context("writing the result as JSON")?;
    let svg = plot::svg(report)?;
    let png = plot::png(report)?;
    for (name, bytes) in [
        ("result.json", (json + "\n").into_bytes()),
        ("result.svg", svg.into_bytes()),
        ("result.png", png),
    ] {
        let path = directory.join(name);
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(job: Option<&str>, devices: &[&str]) -> Options {
        Options {
            transport: Transport::VhostUser,
            job: job.map(str::to_owned),
            devices: devices.iter().map(|name| (*name).to_owned()).collect(),
            rounds: 1,
            seconds: Duration::from_secs(1),
            kernel_args: Vec::new(),
            device_args: Vec::new(),
            instructions: true,
            instruction_rounds: 1,
            plugin: None,
            check: false,
        }
    }

    #[test]
    fn times_are_short_and_positive() {
        assert_eq!(parse_time("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("2"), Ok(Duration::from_secs(2)));
        for text in ["", "0", "-1", "61", "NaN", "1e300", "2s"] {
            assert!(parse_time(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_switch_is_on_or_off() {
        assert_eq!(parse_switch("on"), Ok(true));
        assert_eq!(parse_switch("off"), Ok(false));
        assert!(parse_switch("").is_err() && parse_switch("yes").is_err());
    }

    #[test]
    fn jobs_and_devices_are_those_asked_for() {
        let all = options(None, &[]).selection().unwrap();
        let empty = options(Some(""), &[""]).selection().unwrap();
        assert_eq!(all, empty);
        assert_eq!(all.columns, Column::ALL);
        let two = options(Some("sweep"), &["nvme", " ringbar"])
            .selection()
            .unwrap();
        assert_eq!(two.columns, [Column::Ringbar, Column::Nvme]);
        assert!(options(None, &["disk"]).selection().is_err());
        assert!(options(Some("disk"), &[]).selection().is_err());
    }
}
