// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Signals, and other requests to end, as descriptors.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

/// A descriptor that becomes readable when the process gets SIGTERM or SIGINT, or is asked to end
/// by an [`Ending`].
#[derive(Debug)]
pub struct Termination {
    signalled: UnixStream,
    ending: Ending,
}

/// Asks the process to end, as SIGTERM does.
#[derive(Clone, Debug)]
pub struct Ending {
    requested: Arc<AtomicBool>,
    handler: Arc<UnixStream>,
}

impl Ending {
    /// Asks the process to end. Returns at once.
    pub fn request(&self) -> io::Result<()> {
        self.requested.store(true, Ordering::SeqCst);
        (&*self.handler).write_all(&[0])
    }
}

impl Termination {
    /// Catches the two signals for the rest of the process's life. A SIGINT after one of them
    /// ends the process at once, because a user at a terminal does not want to wait. A second
    /// SIGTERM does not: a supervisor sends it after the SIGINT that the terminal has sent to
    /// all processes.
    pub fn catch() -> io::Result<Self> {
        let (signalled, handler) = UnixStream::pair()?;
        let ending = Arc::new(AtomicBool::new(false));
        // The order matters: the handler registered first sees the flag unset at the first
        // SIGINT.
        flag::register_conditional_default(SIGINT, Arc::clone(&ending))?;
        for signal in [SIGTERM, SIGINT] {
            flag::register(signal, Arc::clone(&ending))?;
            pipe::register(signal, handler.try_clone()?)?;
        }
        handler.set_nonblocking(true)?;
        Ok(Self {
            signalled,
            ending: Ending {
                requested: ending,
                handler: Arc::new(handler),
            },
        })
    }

    /// Another way to ask for the end.
    pub fn ending(&self) -> Ending {
        self.ending.clone()
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signalled.as_fd()
    }
}

impl From<Termination> for OwnedFd {
    fn from(termination: Termination) -> Self {
        termination.signalled.into()
    }
}

/// Catches SIGHUP for the rest of the process's life. The descriptor becomes readable when one
/// comes; it is not blocking.
pub fn catch_hangup() -> io::Result<OwnedFd> {
    let (signalled, handler) = UnixStream::pair()?;
    signalled.set_nonblocking(true)?;
    pipe::register(SIGHUP, handler)?;
    Ok(signalled.into())
}
