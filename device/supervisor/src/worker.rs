// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The process of a worker.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, remove_dir, remove_file};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

use crate::channel::Channel;
use crate::handover::{self, FromWorker};

/// Longest time that a worker may take to end after it was asked to. A worker itself gives its
/// requests 5 s, and then writes the last data to a disk, which can take minutes. Only a worker
/// that hangs is killed.
const END_TIMEOUT: Duration = Duration::from_secs(600);

/// Variables that tell a process what its service manager passes to it (sd_listen_fds(3),
/// sd_notify(3)). They are about the supervisor.
const SERVICE_MANAGER: &[&str] = &[
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
];

/// The program of the workers: a file, so that it stays the same when another version is
/// installed.
#[derive(Debug)]
pub(crate) struct Program {
    file: File,
    path: PathBuf,
}

impl Program {
    /// The program of this process.
    pub(crate) fn own() -> io::Result<Self> {
        Ok(Self {
            path: std::env::current_exe()?,
            file: File::open("/proc/self/exe")?,
        })
    }

    /// The program that is installed at this path now.
    pub(crate) fn of(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            file: File::open(&path)?,
            path,
        })
    }

    /// The program that is installed at the same path now.
    pub(crate) fn installed(&self) -> io::Result<Self> {
        Self::of(self.path.clone())
    }
}

/// A worker.
///
/// ```text
///  spawn ─► starting ─► ready, and has handled the state ─► serving ─► ended
/// ```
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    pidfd: OwnedFd,
    pub(crate) channel: Channel,
    pub(crate) handover: OwnedFd,
    /// It has not closed the other socket.
    pub(crate) talks: bool,
    /// It has not closed the connection.
    pub(crate) is_connected: bool,
    pub(crate) is_ready: bool,
    /// Replies to come that nobody but the supervisor waits for.
    pub(crate) replies_to_drop: u32,
    /// It was asked to end, to be replaced.
    pub(crate) is_replaced: bool,
    /// Somebody has asked it to end, and the device with it.
    pub(crate) is_asked_to_end: bool,
    /// The supervisor had to kill it.
    pub(crate) was_killed: bool,
    /// When it is killed.
    pub(crate) deadline: Option<Instant>,
}

impl Worker {
    /// Starts a worker; `start` gives it what it starts with.
    pub(crate) fn spawn(
        program: &Program,
        arguments: &[OsString],
        start: impl FnOnce(&OwnedFd, &UnixListener) -> io::Result<()>,
    ) -> io::Result<Self> {
        let (listener, connection) = connection()?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        start(&ours, &listener)?;
        // The child opens this before it closes its copy of the descriptor.
        let mut command = Command::new(format!("/proc/self/fd/{}", program.file.as_raw_fd()));
        command
            .arg0(program.path.as_os_str())
            .args(arguments)
            .stdin(Stdio::from(theirs));
        for variable in SERVICE_MANAGER {
            command.env_remove(variable);
        }
        let mut child = command.spawn()?;
        let pidfd = Pid::from_raw(child.id().cast_signed())
            .ok_or_else(|| io::Error::other("the worker has no process id"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        let connected = pidfd.and_then(|pidfd| Ok((pidfd, Channel::new(connection)?)));
        let (pidfd, channel) = match connected {
            Ok(both) => both,
            Err(error) => {
                // It may have ended already.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        Ok(Self {
            child,
            pidfd,
            channel,
            handover: ours,
            talks: true,
            is_connected: true,
            is_ready: false,
            replies_to_drop: 0,
            is_replaced: false,
            is_asked_to_end: false,
            was_killed: false,
            deadline: None,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Readable once the process has ended.
    pub(crate) const fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Whether it has handled the state of the connection.
    pub(crate) const fn serves(&self) -> bool {
        self.is_connected && self.replies_to_drop == 0
    }

    /// The worker has closed the connection, so it ends.
    pub(crate) fn disconnected(&mut self) {
        self.is_connected = false;
        self.end_by_deadline();
    }

    fn end_by_deadline(&mut self) {
        self.deadline = self
            .deadline
            .or_else(|| Instant::now().checked_add(END_TIMEOUT));
    }

    /// Closes the connection, as the monitor has done.
    pub(crate) fn hang_up(&self) {
        // Fails where the worker has closed it already.
        let _ = shutdown(&self.channel, Shutdown::Both);
    }

    /// Asks it to end.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
        self.end_by_deadline();
    }

    pub(crate) fn kill(&mut self) {
        self.was_killed = true;
        self.deadline = None;
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // Fails where it has ended already.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// The status of a process that has ended.
    pub(crate) fn status(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Takes what it has said before its end, beyond that it was ready.
    pub(crate) fn hear_last(&mut self) {
        loop {
            match handover::receive_from_worker(&self.handover) {
                FromWorker::AskedToEnd => self.is_asked_to_end = true,
                FromWorker::Ready(_) | FromWorker::Unknown => {}
                FromWorker::Later | FromWorker::Nothing => return,
            }
        }
    }

    /// Waits for its end after the monitor has hung up, or after [`Self::terminate`].
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.end_by_deadline();
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let timeout = timespec(END_TIMEOUT);
        let ended = loop {
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other? > 0,
            }
        };
        if !ended {
            warn!("the worker did not end in time: killed");
            self.kill();
        }
        self.child.wait()
    }
}

impl Drop for Worker {
    /// Only a worker that nobody has waited for still runs.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// A listening socket on which one connection waits, and the other end of that. Nobody else can
/// connect to it: its file was in a directory of this user, and is gone.
fn connection() -> io::Result<(UnixListener, UnixStream)> {
    let directory = private_directory()?;
    let path = directory.join("socket");
    let connected = UnixListener::bind(&path)
        .and_then(|listener| UnixStream::connect(&path).map(|stream| (listener, stream)));
    // The first fails where the socket could not be created; what stays behind does no harm.
    let _ = remove_file(&path);
    let _ = remove_dir(&directory);
    connected
}

/// Creates a directory that only this user can access, with a name that nobody can take before.
fn private_directory() -> io::Result<PathBuf> {
    let name = RandomState::new().hash_one(std::process::id());
    let path = std::env::temp_dir().join(format!("ringbar-{name:016x}"));
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}
