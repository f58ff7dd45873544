// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What wakes the thread of a ring that waits in the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tracing::warn;

use super::ring::Waker;

/// An eventfd, which the thread waits for beside its operations.
#[derive(Debug)]
pub(crate) struct Wake(Arc<OwnedFd>);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(eventfd(0, flags)?)))
    }

    /// What makes the descriptor readable, from any thread.
    pub(crate) fn waker(&self) -> Waker {
        let wake = Arc::clone(&self.0);
        Arc::new(
            move || match rustix::io::write(&*wake, &1u64.to_ne_bytes()) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => warn!(%error, "cannot wake the thread of a ring"),
            },
        )
    }

    /// Makes the descriptor unreadable.
    pub(crate) fn clear(&self) {
        // It may be so already.
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
