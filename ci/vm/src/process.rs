// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Child processes on the host that never outlive this process.
//!
//! Three mechanisms ensure that: dropping a [`HostProcess`] kills it; a signal that ends
//! this process kills all of them first ([`clean_up_on_signals`]); and if this process is
//! killed with SIGKILL, the kernel kills them (`PR_SET_PDEATHSIG`). The last one is bound
//! to the *thread* that started a process, so that thread must live as long as the
//! process.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal,
    waitid,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{Error, Result};
use crate::terminal::SavedTerminal;

/// State to clean up when a signal ends this process.
#[derive(Default)]
struct Registry {
    processes: HashMap<u32, Pid>,
    directories: Vec<PathBuf>,
    terminal: Option<SavedTerminal>,
}

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    fn clean_up(&self) {
        for pid in self.processes.values() {
            // The process may have ended already.
            let _ = kill_process(*pid, Signal::KILL);
        }
        for pid in self.processes.values() {
            // Returns when the process has ended, or another thread has reaped it.
            let _ = waitid(
                WaitId::Pid(*pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            );
        }
        for directory in &self.directories {
            let _ = fs::remove_dir_all(directory);
        }
        // QEMU, which changed the settings, has ended.
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }
}

/// Handles SIGINT, SIGHUP and SIGTERM: kills all child processes, removes the temporary
/// directories and restores the terminal, then ends this process.
pub fn clean_up_on_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(Error::io("installing signal handlers"))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Held until the exit, so that no further process is started.
                let registry = registry();
                registry.clean_up();
                std::process::exit(128 + signal);
            }
        })
        .map_err(Error::io("starting the signal thread"))?;
    Ok(())
}

/// Registers a directory for removal when a signal ends this process.
pub(crate) fn remove_at_exit(directory: &Path) {
    registry().directories.push(directory.to_owned());
}

/// Cancels the registration of a directory.
pub(crate) fn keep_at_exit(directory: &Path) {
    registry().directories.retain(|known| known != directory);
}

/// Restores the settings of the terminal on standard input when dropped, or when a signal
/// ends this process. There must be only one.
#[derive(Debug)]
pub struct TerminalGuard(());

impl TerminalGuard {
    /// Saves the settings, if standard input is a terminal.
    pub fn new() -> Self {
        registry().terminal = SavedTerminal::of(io::stdin());
        Self(())
    }
}

impl Default for TerminalGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        if let Some(terminal) = registry().terminal.take() {
            terminal.restore();
        }
    }
}

/// A child process with a log.
#[derive(Debug)]
pub struct HostProcess {
    name: &'static str,
    child: Child,
    /// Becomes readable when the process has ended.
    ended: OwnedFd,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl HostProcess {
    /// Starts `command`. Its standard error goes to `log`, and so does its standard
    /// output unless it uses the terminal.
    ///
    /// Without the terminal, the process gets a process group of its own, so that Ctrl-C
    /// reaches only this process, which then ends the others in order.
    pub fn spawn(
        name: &'static str,
        mut command: Command,
        log: &Path,
        uses_terminal: bool,
    ) -> Result<Self> {
        let file = File::create(log).map_err(Error::io(format!("creating {}", log.display())))?;
        let duplicate = || {
            file.try_clone()
                .map_err(Error::io(format!("duplicating {}", log.display())))
        };
        command.stderr(duplicate()?);
        if !uses_terminal {
            command
                .stdin(Stdio::null())
                .stdout(duplicate()?)
                .process_group(0);
        }
        let parent = rustix::process::getpid();
        let die_with_parent = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have ended before the setting took effect.
            if rustix::process::getppid() != Some(parent) {
                return Err(Errno::SRCH.into());
            }
            Ok(())
        };
        // SAFETY: `die_with_parent` makes two system calls and neither
        // allocates nor locks.
        unsafe { command.pre_exec(die_with_parent) };

        let mut registry = registry();
        let child = command.spawn().map_err(Error::io(format!(
            "starting {name} ({})",
            command.get_program().to_string_lossy()
        )))?;
        let pid = Pid::from_child(&child);
        registry.processes.insert(child.id(), pid);
        drop(registry);

        let ended = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| Error::io(format!("watching {name}"))(errno.into()))?;
        Ok(Self {
            name,
            child,
            ended,
            log: log.to_owned(),
            status: None,
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Name of the process, for messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// File descriptor that becomes readable when the process has ended.
    pub fn ended(&self) -> &OwnedFd {
        &self.ended
    }

    /// The exit status, if the process has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            // Reaped and unregistered under one lock, because the id may be reused
            // afterwards.
            let mut registry = registry();
            if let Ok(Some(status)) = self.child.try_wait() {
                registry.processes.remove(&self.child.id());
                self.status = Some(status);
            }
        }
        self.status
    }

    /// Waits for the process to end; `None` after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        wait_readable(&[&self.ended], deadline).ok()?;
        self.status()
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            // An error means that the process has just ended.
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// A handle for stopping and resuming the process from other threads.
    pub fn pauser(&self) -> Result<Pauser> {
        let pidfd = self
            .ended
            .try_clone()
            .map_err(Error::io(format!("watching {}", self.name)))?;
        Ok(Pauser {
            name: self.name,
            pidfd,
        })
    }

    /// Ends the process at once and waits for it.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10));
    }

    /// An error if this process has ended.
    pub fn exit_error(&mut self, during: &str) -> Option<Error> {
        let status = self.status()?;
        Some(Error::Ended {
            name: self.name,
            status,
            during: during.to_owned(),
            tail: log_excerpt(self.name, &self.log),
        })
    }

    /// Path of the log.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stops, resumes and kills a process by pidfd, so that a reused id is not affected.
#[derive(Debug)]
pub struct Pauser {
    name: &'static str,
    pidfd: OwnedFd,
}

impl Pauser {
    /// Stops the process (`SIGSTOP`) and waits until all its threads have stopped: the
    /// kernel reports a process as stopped when its last thread is.
    pub fn pause(&self) -> Result<()> {
        self.change(Signal::STOP, WaitIdOptions::STOPPED, "stopping")
    }

    /// Lets the process run again (`SIGCONT`).
    pub fn resume(&self) -> Result<()> {
        self.change(Signal::CONT, WaitIdOptions::CONTINUED, "resuming")
    }

    /// Ends the process at once and waits until it is gone, but for its status, which only the
    /// owner takes.
    pub fn kill(&self) -> Result<()> {
        let problem = |errno: Errno| Error::io(format!("killing {}", self.name))(errno.into());
        pidfd_send_signal(&self.pidfd, Signal::KILL).map_err(problem)?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))
            .map(drop)
            .map_err(problem)
    }

    fn change(&self, signal: Signal, report: WaitIdOptions, verb: &str) -> Result<()> {
        let problem = |errno: Errno| Error::io(format!("{verb} {}", self.name))(errno.into());
        pidfd_send_signal(&self.pidfd, signal).map_err(problem)?;
        // The wait must also end when the process exits, but only the owner reaps it.
        let options = report | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let status =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))
                .map_err(problem)?;
        if status.is_some_and(|status| status.exited() || status.killed() || status.dumped()) {
            return Err(problem(Errno::SRCH));
        }
        Ok(())
    }
}

/// Waits until one of the descriptors is readable or hung up; `Ok(false)` when
/// the deadline passed.
pub fn wait_readable(fds: &[&OwnedFd], deadline: Instant) -> io::Result<bool> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::IN))
        .collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The last lines of a log file, without control characters.
pub fn tail(path: &Path, lines: usize) -> String {
    /// Number of bytes read from the end of the file.
    const TAIL_BYTES: u64 = 64 << 10;
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => last_lines(&text, lines),
        Err(error) => format!("{}: {error}", path.display()),
    }
}

fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars()
                .filter(|c| !c.is_control() || *c == '\t')
                .collect()
        })
        .filter(|line: &String| !line.trim().is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The end of a log as an excerpt for an error message.
pub fn log_excerpt(name: &str, path: &Path) -> String {
    const LINES: usize = 25;
    let tail = tail(path, LINES);
    if tail.is_empty() {
        format!("\n--- the log of {name} is empty ---")
    } else {
        format!("\n--- last lines of the log of {name} ---\n{tail}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(script: &str, dir: &Path) -> HostProcess {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        HostProcess::spawn("a test", command, &dir.join("log"), false).unwrap()
    }

    #[test]
    fn an_early_end_is_reported_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = spawn("echo cannot do it >&2; exit 3", dir.path());
        assert!(process.wait(Duration::from_secs(10)).is_some());
        let text = process.exit_error("waiting").unwrap().to_string();
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("cannot do it"), "{text}");
    }

    #[test]
    fn waiting_is_bounded_and_dropping_kills() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = spawn("exec tail -f /dev/null", dir.path());
        let pid = process.id();
        assert!(process.wait(Duration::from_millis(1)).is_none());
        assert!(process.exit_error("waiting").is_none());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(!registry().processes.contains_key(&pid));
    }

    /// The states of all threads of a process, as `ps` shows them.
    fn states(pid: u32) -> Vec<char> {
        fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .map(|entry| {
                let stat = fs::read_to_string(entry.unwrap().path().join("stat")).unwrap();
                stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
            })
            .collect()
    }

    #[test]
    fn a_process_is_stopped_and_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = spawn("while :; do :; done", dir.path());
        let pauser = process.pauser().unwrap();
        for _ in 0..20 {
            pauser.pause().unwrap();
            assert_eq!(states(process.id()), ['T']);
            // A second stop has no effect.
            pauser.pause().unwrap();
            pauser.resume().unwrap();
            assert_ne!(states(process.id()), ['T']);
            pauser.resume().unwrap();
        }
        pauser.pause().unwrap();
        process.kill();
        assert!(process.status().is_some(), "a stopped process is killed");
        assert!(pauser.pause().is_err());
        assert!(pauser.resume().is_err());
    }

    #[test]
    fn a_process_is_killed_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = spawn("exec tail -f /dev/null", dir.path());
        process.pauser().unwrap().kill().unwrap();
        // Gone already, and its owner still learns how.
        let status = process.status().unwrap();
        assert_eq!(status.code(), None, "{status}");
        assert!(process.pauser().unwrap().kill().is_err());
    }

    #[test]
    fn the_tail_holds_the_last_lines_without_control_characters() {
        assert_eq!(last_lines("a\n\nb\r\n\x1b[6nc\n", 2), "b\n[6nc");
        assert_eq!(last_lines("", 3), "");
    }

    #[test]
    fn a_signal_leaves_nothing_behind() {
        use crate::terminal::tests::{is_ordinary, make_raw, terminal};

        let dir = tempfile::tempdir().unwrap();
        let mut process = spawn("exec tail -f /dev/null", dir.path());
        let directory = dir.path().join("private");
        fs::create_dir(&directory).unwrap();
        let (terminal, _other) = terminal();
        let registry = Registry {
            processes: HashMap::from([(process.id(), Pid::from_child(&process.child))]),
            directories: vec![directory.clone()],
            terminal: SavedTerminal::of(&terminal),
        };
        make_raw(&terminal);
        registry.clean_up();
        assert!(is_ordinary(&terminal), "the terminal is as QEMU left it");
        assert!(process.status().is_some(), "a process runs");
        assert!(!directory.exists(), "a directory is there");
    }
}
