// SPDX-License-Identifier: Apache-2.0 OR MIT

//! SIGTERM and SIGINT as a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// Becomes readable when the process is asked to end.
#[derive(Debug)]
pub struct Termination {
    asked: UnixStream,
}

impl Termination {
    /// Takes over the two signals for the rest of the process's life.
    pub fn catch() -> io::Result<Self> {
        let (asked, handler) = UnixStream::pair()?;
        pipe::register(SIGTERM, handler.try_clone()?)?;
        pipe::register(SIGINT, handler)?;
        Ok(Self { asked })
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }
}
