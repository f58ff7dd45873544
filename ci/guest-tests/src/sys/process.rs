// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes and signals.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use super::result::check;

/// A child made by [`fork`], killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    collected: bool,
}

/// Forks a child that runs `body` and exits with its result.
///
/// To be called while this process has one thread: the child has only the calling thread,
/// so a lock of another thread would stay locked in it.
pub fn fork(body: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: the process has one thread, see above.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            // A panic must not run the parent's code in the child.
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            exit_now(code)
        }
        pid if pid > 0 => {
            // SAFETY: a system call on our child, which is not yet collected.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            let fd = i32::try_from(check(fd as isize)?).map_err(io::Error::other)?;
            // SAFETY: the kernel just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Child {
                pid,
                pidfd,
                collected: false,
            })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Changes this process to an ordinary user, irrevocably.
pub fn become_user(user: u32) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::setresuid(user, user, user) } as isize).map(drop)
}

/// Ends this process at once (`_exit`).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: the call does not return.
    unsafe { libc::_exit(code) }
}

impl Child {
    /// Process id.
    pub fn id(&self) -> i32 {
        self.pid
    }

    /// Waits for the child to end: `Ok(code)` for an exit status, `Err(signal)`
    /// for the signal that ended it.
    pub fn wait(mut self, timeout: Duration) -> io::Result<Result<i32, i32>> {
        if !readable(&self.pidfd, timeout)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.reap()
    }

    /// Whether the child has ended, with all its threads.
    pub fn has_ended(&self) -> io::Result<bool> {
        readable(&self.pidfd, Duration::ZERO)
    }

    fn reap(&mut self) -> io::Result<Result<i32, i32>> {
        let mut status = 0;
        // SAFETY: the kernel writes one word.
        let result = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        check(result as isize)?;
        self.collected = true;
        Ok(if libc::WIFSIGNALED(status) {
            Err(libc::WTERMSIG(status))
        } else {
            Ok(libc::WEXITSTATUS(status))
        })
    }

    /// Whether the child, with all its threads, ends within this time.
    pub fn ends_within(&self, time: Duration) -> io::Result<bool> {
        readable(&self.pidfd, time)
    }

    /// Sends a signal.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        kill(self.pid, signal)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.collected {
            let _ = self.kill(libc::SIGKILL);
            // A process that cannot be killed is left behind, so that the test ends and
            // reports it.
            if let Ok(true) = readable(&self.pidfd, Duration::from_secs(10)) {
                let _ = self.reap();
            }
        }
    }
}

fn readable(fd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the kernel writes one field of the structure.
        match check(unsafe { libc::poll(&raw mut poll, 1, millis) } as isize) {
            Ok(n) => return Ok(n > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends a signal to a process.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::kill(pid, signal) } as isize).map(drop)
}

extern "C" fn empty_handler(_signal: i32) {}

/// Installs an empty handler, so that a signal only interrupts system calls.
pub fn set_empty_handler(signal: i32) -> io::Result<()> {
    // SAFETY: all fields of the structure may be 0.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = empty_handler as *const () as usize;
    // SAFETY: the handler does nothing.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    check(result as isize).map(drop)
}

/// Starts a timer that sends SIGALRM at this interval; 0 stops it.
pub fn interval_timer(interval: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: interval.as_secs().cast_signed(),
        tv_usec: i64::from(interval.subsec_micros()),
    };
    let timer = libc::itimerval {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: the kernel reads the structure.
    let result = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
    check(result as isize).map(drop)
}

/// A new eventfd.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call touches no memory.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    check(fd as isize)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits for an eventfd to be signalled; returns its count, 0 after `timeout`.
pub fn eventfd_wait(eventfd: &OwnedFd, timeout: Duration) -> io::Result<u64> {
    if !readable(eventfd, timeout)? {
        return Ok(0);
    }
    let mut count = 0u64;
    // SAFETY: the kernel writes one word of eight bytes.
    let result = unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), 8) };
    check(result)?;
    Ok(count)
}
