// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The daemon as a process.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_open, prlimit,
};
use tempfile::TempDir;

use super::TEST_TIMEOUT;

/// A running daemon with a directory of its own.
pub struct Daemon {
    child: Child,
    log: Receiver<String>,
    /// Locked by the reader of the log for each line.
    reading: Arc<Mutex<()>>,
    seen: Vec<String>,
    socket: PathBuf,
    directory: TempDir,
}

/// A thread, as the kernel shows it.
pub struct Thread {
    pub name: String,
    status: String,
}

impl Thread {
    /// The calling thread.
    pub fn own() -> Self {
        Self::read(Path::new("/proc/thread-self")).unwrap()
    }

    /// `None` where it has ended.
    fn read(directory: &Path) -> Option<Self> {
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let mut thread = Self {
            name: String::new(),
            status,
        };
        thread.name = thread.field("Name").to_owned();
        Some(thread)
    }

    /// A field of its status (proc_pid_status(5)).
    #[track_caller]
    pub fn field(&self, field: &str) -> &str {
        let mut lines = self.status.lines().filter_map(|line| line.split_once(':'));
        match lines.find(|(name, _)| *name == field) {
            Some((_, value)) => value.trim(),
            None => panic!("no {field} in {}", self.status),
        }
    }
}

/// The daemon's command line in `directory`, with further arguments.
pub fn command(socket: &Path, args: &[&str]) -> Command {
    command_of(
        Path::new(env!("CARGO_BIN_EXE_ringbar-device")),
        socket,
        args,
    )
}

/// The same of another program.
pub fn command_of(program: &Path, socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--socket-path")
        .arg(socket)
        .args(args)
        .env_remove("RINGBAR_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Daemon {
    /// Starts a daemon and waits until it listens.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), args)
    }

    /// The same, in a directory that may hold files already.
    pub fn start_in(directory: TempDir, args: &[&str]) -> Self {
        let socket = directory.path().join("socket");
        let command = command(&socket, args);
        Self::spawn(directory, socket, command)
    }

    /// Starts any command line and waits until it listens.
    pub fn spawn(directory: TempDir, socket: PathBuf, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = channel();
        let reading = Arc::new(Mutex::new(()));
        let reading_log = Arc::clone(&reading);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
                drop(reading_log.lock().unwrap());
            }
        });
        let mut daemon = Self {
            child,
            log,
            reading,
            seen: Vec::new(),
            socket,
            directory,
        };
        daemon.wait_log("listening on");
        daemon
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for a message that contains `text`.
    #[track_caller]
    pub fn wait_log(&mut self, text: &str) -> String {
        loop {
            match self.log.recv_timeout(TEST_TIMEOUT) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => panic!("no {text:?} in the log ({error}): {:#?}", self.seen),
            }
        }
    }

    /// Waits for a message that contains `text`. Returns whether there was one before the log ended.
    #[track_caller]
    pub fn logs_before_end(&mut self, text: &str) -> bool {
        loop {
            match self.log.recv_timeout(TEST_TIMEOUT) {
                Ok(line) => {
                    let is_it = line.contains(text);
                    self.seen.push(line);
                    if is_it {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(error) => panic!("no {text:?} in the log ({error}): {:#?}", self.seen),
            }
        }
    }

    /// The messages up to the last one that a test has waited for.
    pub fn seen(&self) -> &[String] {
        &self.seen
    }

    /// A lock that stops the reader of the log while it is locked.
    pub fn reading(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.reading)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Makes the daemon fail to open any further descriptor. Returns the previous limit.
    pub fn forbid_descriptors(&self) -> Rlimit {
        self.limit_descriptors(3)
    }

    /// Limits the number of further descriptors that the daemon can open. Returns the previous
    /// limit.
    pub fn allow_more_descriptors(&self, more: usize) -> Rlimit {
        let open: Vec<u64> = self
            .entries("fd")
            .map(|name| name.to_str().unwrap().parse().unwrap())
            .collect();
        let mut free = (0..).filter(|number| !open.contains(number));
        self.limit_descriptors(free.nth(more).unwrap())
    }

    fn limit_descriptors(&self, current: u64) -> Rlimit {
        let limit = Rlimit {
            current: Some(current),
            ..getrlimit(Resource::Nofile)
        };
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap()
    }

    /// Numbers of descriptors and threads of the daemon.
    pub fn resources(&self) -> (usize, usize) {
        (self.entries("fd").count(), self.entries("task").count())
    }

    /// The threads of the daemon.
    pub fn threads(&self) -> Vec<Thread> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        self.entries("task")
            .filter_map(|id| Thread::read(&tasks.join(id)))
            .collect()
    }

    /// Names in a directory of the process in `/proc`.
    fn entries(&self, directory: &str) -> impl Iterator<Item = OsString> {
        fs::read_dir(format!("/proc/{}/{directory}", self.child.id()))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
    }

    /// Restores a limit.
    pub fn allow_descriptors(&self, limit: Rlimit) {
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let timeout = Timespec {
            tv_sec: TEST_TIMEOUT.as_secs() as i64,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "daemon does not end: {:#?}", self.seen);
        self.child.wait().unwrap()
    }

    /// Asserts that the daemon ends well and leaves no socket behind. Returns
    /// its directory.
    #[track_caller]
    pub fn assert_clean_exit(mut self) -> TempDir {
        self.wait_log("done requests=");
        self.ended_well();
        std::mem::replace(&mut self.directory, TempDir::new().unwrap())
    }

    /// As [`Self::assert_clean_exit`], if the test has read the last message already.
    #[track_caller]
    pub fn assert_ended_well(mut self) {
        self.ended_well();
    }

    #[track_caller]
    fn ended_well(&mut self) {
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{:#?}", self.seen);
        assert_eq!(status.signal(), None);
        assert!(!self.socket.exists(), "socket left behind");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
