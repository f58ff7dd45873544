// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-init`: PID 1 of the Ringbar guest.
//!
//! It sets the guest up ([`setup`]). Then it executes the host's requests over a virtio-serial
//! port ([`server`]), or runs a shell on the serial console ([`shell`]) if the kernel command
//! line says so. The [`reaper`] reaps all processes that PID 1 starts, and their orphans.
//!
//! At the end, or after an error from which it cannot continue, it powers the guest off, because
//! the kernel panics if PID 1 returns.

mod arguments;
mod port;
mod process;
mod reaper;
mod server;
mod setup;
mod shell;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use anyhow::Context;
use arguments::{Arguments, Mode};
use rustix::system::{RebootCommand, reboot};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("ringbar-init is PID 1 of the Ringbar guest and does nothing elsewhere");
        return ExitCode::from(2);
    }
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("ringbar-init: {error:#}"),
        Err(_) => eprintln!("ringbar-init: panicked, see above"),
    }
    power_off()
}

fn run() -> anyhow::Result<()> {
    setup::mount_file_systems()?;
    setup::set_environment();
    let arguments = Arguments::read().context("reading the kernel command line")?;
    let reaper = reaper::Reaper::start()?;
    setup::load_iommu(&reaper)?;

    match arguments.mode {
        Mode::Serve => {
            setup::show_all_kernel_messages()?;
            server::serve(&reaper, arguments.line.as_deref())
        }
        Mode::Shell => shell::run(&reaper, &arguments),
    }
}

/// Syncs all file systems and powers the machine off.
fn power_off() -> ! {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("ringbar-init: power off: {error}");
    }
    // Only reached if the kernel cannot power off. The kernel then panics and restarts the
    // machine (`panic=-1`), which ends QEMU (`-no-reboot`).
    std::process::exit(1)
}
