// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `poll`, `epoll`, and the flags of an open file.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::result::check;

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}

/// `poll` of one file for these events. Returns the events that occurred, 0 after
/// `timeout`.
pub fn poll(file: &File, events: i16, timeout: Duration) -> io::Result<i16> {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: the kernel writes one field of the structure.
    check(unsafe { libc::poll(&raw mut poll, 1, millis(timeout)) } as isize)?;
    Ok(poll.revents)
}

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An instance without files.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call touches no memory.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(fd as isize)?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds a file with these events and a tag.
    pub fn add(&self, file: &File, events: i32, tag: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events.cast_unsigned(),
            u64: tag,
        };
        let (epoll, file) = (self.0.as_raw_fd(), file.as_raw_fd());
        // SAFETY: the kernel reads the structure.
        let result = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, file, &raw mut event) };
        check(result as isize).map(drop)
    }

    /// Waits for the next events of one file; returns them with its tag, or `None` after
    /// `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<Option<(i32, u64)>> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let epoll = self.0.as_raw_fd();
        // SAFETY: the kernel writes at most one structure.
        let result = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, millis(timeout)) };
        let count = check(result as isize)?;
        let (events, tag) = (event.events, event.u64);
        Ok((count > 0).then_some((events.cast_signed(), tag)))
    }
}

/// Flags of an open file (`F_GETFL`).
pub fn file_flags(file: &File) -> io::Result<i32> {
    // SAFETY: the call touches no memory.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    check(flags as isize)?;
    Ok(flags)
}

/// Sets the flags of an open file (`F_SETFL`).
pub fn set_file_flags(file: &File, flags: i32) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) };
    check(result as isize).map(drop)
}
