// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The descriptors of `VHOST_USER_SET_VRING_KICK` and `VHOST_USER_SET_VRING_CALL`: eventfds,
//! or any other descriptors that a monitor sends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ringbar_engine::{Doorbell, Interrupt};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};
use tracing::warn;

/// Kick descriptor.
pub(crate) struct Kick(File);

impl Kick {
    pub(crate) fn new(file: File) -> Self {
        // A read without a kick must not block the worker.
        set_nonblocking(&file);
        Self(file)
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Doorbell for Kick {
    fn acknowledge(&self) -> io::Result<bool> {
        match read(&self.0, &mut [0; 8]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Call descriptor.
pub(crate) struct Call(File);

impl Call {
    pub(crate) fn new(file: File) -> Self {
        // A write to a full eventfd must not block the worker.
        set_nonblocking(&file);
        Self(file)
    }
}

impl Interrupt for Call {
    fn raise(&self) -> io::Result<()> {
        write(&self.0, &1u64.to_ne_bytes())?;
        Ok(())
    }
}

/// Makes a descriptor non-blocking, as QEMU's are already.
fn set_nonblocking(file: &File) {
    let set = || -> io::Result<()> {
        let flags = fcntl_getfl(file)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(file, flags | OFlags::NONBLOCK)?;
        }
        Ok(())
    };
    if let Err(error) = set() {
        warn!(%error, "cannot make the descriptor of a queue non-blocking");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::EventfdFlags;

    use super::*;

    /// Two descriptors of one blocking eventfd.
    fn eventfd() -> (File, File) {
        let ours = File::from(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        (ours.try_clone().unwrap(), ours)
    }

    fn add(file: &File, value: u64) {
        write(file, &value.to_ne_bytes()).unwrap();
    }

    fn take(file: &File) -> u64 {
        let mut bytes = [0; 8];
        read(file, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn kick_is_acknowledged_once_and_its_absence_is_no_error() {
        let (ours, theirs) = eventfd();
        let kick = Kick::new(theirs);
        assert!(!kick.acknowledge().unwrap());
        add(&ours, 1);
        assert!(kick.acknowledge().unwrap());
        assert!(!kick.acknowledge().unwrap());
    }

    #[test]
    fn a_kick_that_cannot_be_read_is_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        let kick = Kick::new(File::from(OwnedFd::from(reader)));
        assert!(!kick.acknowledge().unwrap());
        drop(writer);
        let error = kick.acknowledge().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn interrupt_does_not_block_on_a_full_eventfd() {
        let (ours, theirs) = eventfd();
        let call = Call::new(theirs);
        // No room for one more.
        add(&ours, u64::MAX - 1);
        let error = call.raise().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(take(&ours), u64::MAX - 1);
        call.raise().unwrap();
        assert_eq!(take(&ours), 1);
    }
}
