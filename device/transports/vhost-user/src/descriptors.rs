// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The descriptor of `VHOST_USER_SET_VRING_KICK`: an eventfd, or any other descriptor that a
//! monitor sends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringbar_engine::Doorbell;
use ringbar_engine::interrupt::set_nonblocking;
use rustix::io::{Errno, read};
use tracing::warn;

/// Kick descriptor.
pub(crate) struct Kick(OwnedFd);

impl Kick {
    pub(crate) fn new(file: File) -> Self {
        let descriptor = file.into();
        // A read without a kick must not block the worker.
        if let Err(error) = set_nonblocking(&descriptor) {
            warn!(%error, "cannot make the descriptor of a doorbell non-blocking");
        }
        Self(descriptor)
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

#[cfg(test)]
mod tests {
    use rustix::event::EventfdFlags;
    use rustix::io::write;

    use super::*;

    /// Two descriptors of one blocking eventfd.
    fn eventfd() -> (File, File) {
        let ours = File::from(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        (ours.try_clone().unwrap(), ours)
    }

    fn add(file: &File, value: u64) {
        write(file, &value.to_ne_bytes()).unwrap();
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
}
