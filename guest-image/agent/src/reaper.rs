// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reaps every process that ends: those started here, and orphans, whose parent is PID 1.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Context;
use ringbar_agent_protocol::ExitStatus;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, pidfd_open, wait, waitid,
};

/// A process that was started here and that the reaper reaps.
#[derive(Debug)]
pub struct Process {
    /// Its id, which is also that of its process group and session.
    pub pid: Pid,
    /// Becomes readable when the process has ended.
    pub ended: OwnedFd,
    /// The child with its pipes. Only the reaper waits for it.
    pub child: Child,
    /// Receives the status once, right after the process has ended.
    pub status: Receiver<ExitStatus>,
}

/// The reaper: the only code of PID 1 that waits for processes.
#[derive(Clone, Debug)]
pub struct Reaper {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    spawned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Receivers of exit statuses, by process.
    waiting: HashMap<Pid, Sender<ExitStatus>>,
    /// Number of processes started so far.
    spawned: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete in itself, so the state is valid after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reaper {
    /// Starts the thread that reaps processes.
    pub fn start() -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reaper = Self {
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("reaper".into())
            .spawn(move || collect_forever(&shared))
            .context("starting the reaper")?;
        Ok(reaper)
    }

    /// Starts a process.
    ///
    /// The lock is held meanwhile. So the reaper cannot reap the process before it is recorded,
    /// nor a process whose start failed, which the standard library reaps itself.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Process> {
        let mut state = self.shared.lock();
        let child = command.spawn()?;
        state.spawned += 1;
        self.shared.spawned.notify_all();
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        let (sender, status) = mpsc::channel();
        state.waiting.insert(pid, sender);
        Ok(Process {
            pid,
            ended,
            child,
            status,
        })
    }

    /// Runs a program to its end, with PID 1's own input and output.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<ExitStatus> {
        let name = command.get_program().to_string_lossy().into_owned();
        let process = self
            .spawn(command)
            .with_context(|| format!("starting {name}"))?;
        process
            .status
            .recv()
            .with_context(|| format!("waiting for {name}"))
    }
}

fn collect_forever(shared: &Shared) {
    loop {
        let seen = shared.lock().spawned;
        // This only waits until a process has ended, which is then reaped under the lock.
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => collect(shared),
            Err(Errno::CHILD) => {
                let mut state = shared.lock();
                while state.spawned == seen {
                    state = shared
                        .spawned
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                eprintln!("ringbar-init: waiting for processes: {error}");
                return;
            }
        }
    }
}

fn collect(shared: &Shared) {
    let mut state = shared.lock();
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let status = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Exited(code),
            (None, Some(signal)) => ExitStatus::Signaled(signal),
            // Stopped or continued; `waitpid` was not called for these.
            (None, None) => continue,
        };
        if let Some(waiting) = state.waiting.remove(&pid) {
            // An error means that the receiver was dropped.
            let _ = waiting.send(status);
        }
    }
}
