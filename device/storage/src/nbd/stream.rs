// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a connection sends and receives on: a socket, or TLS on a socket.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustls::ClientConnection;

use super::error::NbdError;
use super::handshake::{Export, go, greet, start_tls};
use super::socket::{HANDSHAKE_TIMEOUT, Socket, Timed};
use super::tls;
use super::uri::NbdUri;

/// A connection's stream of bytes. No call waits once it is non-blocking.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
}

impl Stream {
    /// Connects to a server, and chooses its export.
    pub(super) fn connect(uri: &NbdUri) -> Result<(Self, Export), NbdError> {
        let socket = Socket::connect(&uri.address)?;
        let mut timed = Timed::new(&socket, HANDSHAKE_TIMEOUT);
        greet(&mut timed)?;
        let Some(tls) = &uri.tls else {
            let export = go(&mut timed, &uri.export)?;
            return Ok((Self { socket, tls: None }, export));
        };
        start_tls(&mut timed)?;
        let mut connection = Box::new(tls::begin(tls, &mut timed)?);
        let export = go(
            &mut rustls::Stream::new(&mut *connection, &mut timed),
            &uri.export,
        )?;
        let tls = Some(connection);
        Ok((Self { socket, tls }, export))
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking()
    }

    /// Whether there is something to send that was written.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Whether there may be something to read although the socket has nothing.
    pub(super) const fn may_have_more(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn read(&mut self, pieces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut socket = &self.socket;
        let Some(tls) = &mut self.tls else {
            return socket.read_vectored(pieces);
        };
        match pieces.iter_mut().find(|piece| !piece.is_empty()) {
            Some(piece) => tls::read(tls, socket, piece),
            None => Ok(0),
        }
    }

    /// Returns 0 where there is nothing to write.
    pub(super) fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match (&mut self.tls, pieces) {
            (Some(tls), _) => tls::write(tls, &self.socket, pieces),
            (None, []) => Ok(0),
            (None, _) => (&self.socket).write_vectored(pieces),
        }
    }

    /// Tells the other side that nothing follows.
    pub(super) fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls::close(tls, &self.socket);
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
