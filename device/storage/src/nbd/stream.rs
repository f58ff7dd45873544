// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a connection sends and receives on: a socket, or TLS on a socket.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use super::error::NbdError;
use super::handshake::{Export, go, greet};
use super::socket::{HANDSHAKE_TIMEOUT, Socket, Timed};
use super::uri::NbdUri;

/// A connection's stream of bytes. No call waits once it is non-blocking.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
}

impl Stream {
    /// Connects to a server, and chooses its export.
    pub(super) fn connect(uri: &NbdUri) -> Result<(Self, Export), NbdError> {
        let socket = Socket::connect(&uri.address)?;
        let mut timed = Timed::new(&socket, HANDSHAKE_TIMEOUT);
        greet(&mut timed)?;
        let export = go(&mut timed, &uri.export)?;
        Ok((Self { socket }, export))
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking()
    }

    /// Whether there is something to send that was written.
    pub(super) const fn wants_write(&self) -> bool {
        false
    }

    pub(super) fn read(&mut self, pieces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&self.socket).read_vectored(pieces)
    }

    /// Returns 0 where there is nothing to write.
    pub(super) fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match pieces {
            [] => Ok(0),
            _ => (&self.socket).write_vectored(pieces),
        }
    }

    /// Tells the other side that nothing follows.
    pub(super) fn close(&mut self) {}
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
