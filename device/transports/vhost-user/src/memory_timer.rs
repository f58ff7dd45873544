// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A timer for guest memory that does not arrive.
//!
//! One thread arms and disarms it, and another one hears of it. No lock is between
//! them: the timer's descriptor does not block, so a timer that was disarmed after it
//! had been reported says just that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, read};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Readable when the time is up.
#[derive(Debug)]
pub(crate) struct MemoryTimer {
    fd: OwnedFd,
}

impl MemoryTimer {
    /// One that is not armed.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            fd: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
            )?,
        })
    }

    /// Has the time be up after `time`, which is not zero.
    pub(crate) fn arm(&self, time: Duration) -> io::Result<()> {
        self.set(time)
    }

    /// Forgets the time, even where it was up already.
    pub(crate) fn disarm(&self) -> io::Result<()> {
        self.set(Duration::ZERO)
    }

    fn set(&self, time: Duration) -> io::Result<()> {
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(time).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// Whether the time is up, which is said once. Never waits.
    pub(crate) fn take_expired(&self) -> io::Result<bool> {
        match read(&self.fd, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for MemoryTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn wait(timer: &MemoryTimer) {
        poll(&mut [PollFd::new(timer, PollFlags::IN)], None).unwrap();
    }

    #[test]
    fn the_end_of_the_time_is_told_once() {
        let timer = MemoryTimer::new().unwrap();
        assert!(!timer.take_expired().unwrap());
        timer.arm(Duration::from_nanos(1)).unwrap();
        wait(&timer);
        assert!(timer.take_expired().unwrap());
        assert!(!timer.take_expired().unwrap());
    }

    #[test]
    fn ho3_a_timer_that_is_disarmed_after_it_was_reported_is_silent() {
        let timer = MemoryTimer::new().unwrap();
        timer.arm(Duration::from_nanos(1)).unwrap();
        wait(&timer);
        timer.disarm().unwrap();
        assert!(!timer.take_expired().unwrap());
    }
}
