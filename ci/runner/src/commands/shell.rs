// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci shell`: an interactive guest.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, thread};

use anyhow::Context;
use clap::Args;
use ringbar_vm::agent::Agent;
use ringbar_vm::error::Error;
use ringbar_vm::process::TerminalGuard;
use ringbar_vm::qemu::Console;
use ringbar_vm::setup::Setup;
use ringbar_vm::vm::Vm;
use rustix::termios::tcgetwinsize;
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;

use super::MachineOptions;

/// Opens a shell in a guest with the driver loaded
///
/// Leave it with `exit` or Ctrl-D. Ctrl-A X ends the guest at once, Ctrl-A C
/// switches to QEMU's monitor and back, Ctrl-A Ctrl-A sends a Ctrl-A.
#[derive(Debug, Args)]
pub struct Options {
    /// Directory to mount at /mnt of the guest, readable and writable
    #[arg(long, env = "RINGBAR_SHARE", value_name = "DIR")]
    share: Option<PathBuf>,

    #[command(flatten)]
    machine: MachineOptions,
}

/// Runs the guest until its shell exits.
pub fn run(setup: &Setup, options: &Options) -> anyhow::Result<ExitCode> {
    let mut vm_options = options.machine.vm();
    vm_options.console = Console::Terminal {
        kind: env::var("TERM").ok().filter(|kind| is_plain(kind)),
    };
    vm_options.share = options
        .share
        .clone()
        .filter(|share| !share.as_os_str().is_empty());

    // QEMU sets the terminal up and restores it, except when it is killed.
    let _terminal = TerminalGuard::new();
    eprintln!(
        "Booting Linux {} in QEMU {} ({}, {})",
        setup.kernel_release, setup.qemu_version, setup.accel, options.machine.transport
    );
    let mut vm = Vm::start(setup, &vm_options)?;
    if vm_options.share.is_some() {
        vm.mount_share()?;
    }

    follow_size(Arc::clone(vm.agent()))?;
    let status = vm.wait();
    Ok(match status {
        Some(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::from(super::FAILURE),
    })
}

/// Sends the terminal's size to the guest, now and after each change.
fn follow_size(agent: Arc<Agent>) -> anyhow::Result<()> {
    let mut changes = Signals::new([SIGWINCH]).context("watching for changes of the terminal")?;
    thread::Builder::new()
        .name("terminal".into())
        .spawn(move || {
            loop {
                if let Ok(size) = tcgetwinsize(io::stdin())
                    && size.ws_row > 0
                    && let Err(Error::GuestGone(_)) = agent.resize_console(size.ws_row, size.ws_col)
                {
                    return;
                }
                if changes.wait().count() == 0 {
                    return;
                }
            }
        })
        .context("starting the terminal thread")?;
    Ok(())
}

/// Whether a value is valid on the kernel's command line.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_terminal_names_reach_the_kernel() {
        assert!(is_plain("xterm-256color"));
        assert!(!is_plain(""));
        assert!(!is_plain("a b"));
        assert!(!is_plain("x\"y"));
    }
}
