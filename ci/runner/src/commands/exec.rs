// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci exec`: one command in a fresh guest.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use ringbar_vm::agent::{Event, GuestCommand};
use ringbar_vm::error::Error;
use ringbar_vm::setup::Setup;
use ringbar_vm::vm::Vm;

use super::{MachineOptions, TIMED_OUT, parse_seconds};

/// Runs one command in a fresh guest with the driver loaded
///
/// Passes the command's output through and exits with its status, with 124 on a timeout,
/// and with 125 if the guest did not start or crashed.
#[derive(Debug, Args)]
pub struct Options {
    /// Command line for the guest's shell
    #[arg(value_name = "COMMAND")]
    positional: Option<String>,

    /// Command line, given as an option
    #[arg(long, env = "RINGBAR_CMD", value_name = "COMMAND")]
    command: Option<String>,

    /// Directory to mount at /mnt of the guest, readable and writable
    #[arg(long, env = "RINGBAR_SHARE", value_name = "DIR")]
    share: Option<PathBuf>,

    /// Timeout of the command in seconds
    #[arg(long, env = "RINGBAR_TIMEOUT", value_name = "SECONDS", default_value = "600",
          value_parser = parse_seconds)]
    timeout: Duration,

    /// Do not load the driver
    #[arg(long)]
    no_driver: bool,

    /// Start without a device; implies --no-driver
    #[arg(long)]
    no_device: bool,

    #[command(flatten)]
    machine: MachineOptions,
}

/// Runs the command.
pub fn run(setup: &Setup, options: &Options) -> anyhow::Result<ExitCode> {
    let line = options
        .positional
        .as_deref()
        .or(options.command.as_deref())
        .filter(|line| !line.trim().is_empty())
        .context("no command; with make: `make exec CMD='...'`")?;
    let mut vm_options = options.machine.vm();
    // An empty value of the environment variable means none.
    vm_options.share = options
        .share
        .clone()
        .filter(|share| !share.as_os_str().is_empty());
    if options.no_device {
        vm_options.devices.clear();
    }
    let mut vm = Vm::start(setup, &vm_options)?;
    if !options.no_driver && !options.no_device {
        vm.load_driver()?;
    }
    if vm_options.share.is_some() {
        vm.mount_share()?;
    }

    let command = GuestCommand::shell(line);
    let result = pass_through(&vm, &command, options.timeout);
    let status = match vm.with_logs(result) {
        Ok(status) => status,
        Err(error) if error.is_timeout() => {
            eprintln!("ringbar-ci: {error:#}");
            return Ok(ExitCode::from(TIMED_OUT));
        }
        Err(error) => return Err(error.into()),
    };
    // The command's status counts, so a guest that does not power off is only reported.
    if let Err(error) = vm.power_off() {
        eprintln!("ringbar-ci: {error:#}");
    }
    let code = u8::try_from(status).with_context(|| format!("exit status {status}"))?;
    Ok(ExitCode::from(code))
}

/// Runs a command, passes its output through, and returns its status.
pub(super) fn pass_through(
    vm: &Vm,
    command: &GuestCommand,
    timeout: Duration,
) -> Result<i32, Error> {
    let mut running = vm.agent().start(command, timeout)?;
    loop {
        match running.next() {
            Ok(Event::Stdout(bytes)) => write(io::stdout(), &bytes)?,
            Ok(Event::Stderr(bytes)) => write(io::stderr(), &bytes)?,
            Ok(Event::Exited(status)) => return Ok(status.shell_code()),
            Err(error) => return Err(error),
        }
    }
}

fn write(mut to: impl Write, bytes: &[u8]) -> Result<(), Error> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .map_err(Error::io("writing the command's output"))
}
