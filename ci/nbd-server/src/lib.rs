// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Starts `qemu-nbd`, a real NBD server, for tests.
//!
//! It is the toolbox's, which `make setup` has installed, or that of `PATH` where there is no
//! toolbox. Without either a test fails: [`command`] says what to do.
//!
//! [`Server::start`] gets the listening socket from the caller (socket activation, as systemd does
//! it). So a client can connect at once, and nobody waits for the server to be ready.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// The server's name.
const PROGRAM: &str = "qemu-nbd";

/// Passes standard input on as the listening socket.
const ACTIVATION: &str = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#;

/// The toolbox of this checkout, as `make setup` has recorded it.
fn toolbox() -> Option<PathBuf> {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/setup.json");
    let record = fs::read(record).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
    record.get("toolbox")?.as_str().map(PathBuf::from)
}

/// The server's program with the arguments that come first.
fn program() -> io::Result<Vec<PathBuf>> {
    if let Some(root) = toolbox() {
        let program = root.join("usr/bin").join(PROGRAM);
        if program.exists() {
            // By the toolbox's loader, with the toolbox's libraries. Entering it would need a
            // namespace of its own, which a process in one may not be allowed.
            return Ok(vec![
                root.join("usr/lib64/ld-linux-x86-64.so.2"),
                "--library-path".into(),
                root.join("usr/lib/x86_64-linux-gnu"),
                program,
            ]);
        }
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let program = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    match program.into_iter().find(|program| program.exists()) {
        Some(program) => Ok(vec![program]),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no qemu-nbd: run `make setup`, or install Debian's package qemu-utils",
        )),
    }
}

/// `qemu-nbd` with these arguments. The process that it starts becomes the server.
pub fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> io::Result<Command> {
    let program = program()?;
    let mut words = program.iter();
    let mut command = Command::new(words.next().unwrap_or(&PathBuf::new()));
    command.args(words).args(arguments);
    Ok(command)
}

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Serves clients of `listener`. The server lives no longer than the calling thread.
    pub fn start<A: AsRef<OsStr>>(
        listener: impl Into<OwnedFd>,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", ACTIVATION, "sh"]);
        command.args(program()?).args(arguments);
        command.stdin(Stdio::from(listener.into()));
        let die_with_parent = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: One system call, which neither allocates nor locks.
        unsafe { command.pre_exec(die_with_parent) };
        command.spawn().map(Self)
    }

    /// Kills the server. Returns when it is gone, and its connections with it.
    pub fn kill(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Stops the server, so that it answers nothing.
    pub fn stall(&self) {
        // PANIC: Of a test, which goes wrong without.
        kill_process(Pid::from_child(&self.0), Signal::STOP).expect("the server runs");
    }

    /// Has a stalled server go on.
    pub fn resume(&self) {
        // PANIC: As above.
        kill_process(Pid::from_child(&self.0), Signal::CONT).expect("the server runs");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
