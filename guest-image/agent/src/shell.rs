// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A shell on the serial console.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context;
use rustix::fs::OFlags;
use rustix::termios::tcdrain;

use crate::arguments::Arguments;
use crate::reaper::Reaper;
use crate::server::{self, CONSOLE};

/// Loads the driver and runs a shell; returns when it is left.
pub fn run(reaper: &Reaper, arguments: &Arguments) -> anyhow::Result<()> {
    // The host sends the size of its terminal over the port. The shell also runs without a host
    // that listens.
    let port_reaper = reaper.clone();
    thread::Builder::new()
        .name("server".into())
        .spawn(move || {
            if let Err(error) = server::serve(&port_reaper, None) {
                eprintln!("ringbar-init: {error:#}");
            }
        })
        .context("starting the server")?;

    let console = open_console()?;

    let loaded = reaper.run(Command::new("modprobe").arg("ringbar"))?;
    if !loaded.success() {
        eprintln!("ringbar-init: modprobe ringbar: {loaded}; see dmesg");
    }
    eprintln!("Ringbar guest. `exit` or Ctrl-D powers it off, Ctrl-A X ends it at once.");

    let stdio = || -> anyhow::Result<Stdio> {
        Ok(console
            .try_clone()
            .context("duplicating the console")?
            .into())
    };
    let mut command = Command::new("sh");
    command
        .arg("-l")
        .current_dir("/root")
        .env("TERM", arguments.terminal.as_deref().unwrap_or("linux"))
        .env("PS1", r"ringbar:\w# ")
        .stdin(stdio()?)
        .stdout(stdio()?)
        .stderr(stdio()?);
    let take_terminal = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: `take_terminal` makes two system calls and neither allocates nor
    // locks; standard input is open by then.
    unsafe { command.pre_exec(take_terminal) };

    reaper.run(&mut command)?;
    // The end of the session has hung up the console, so it is opened again.
    tcdrain(open_console()?.as_fd()).context("writing out the console")
}

fn open_console() -> anyhow::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(CONSOLE)
        .with_context(|| format!("opening {CONSOLE}"))
}
