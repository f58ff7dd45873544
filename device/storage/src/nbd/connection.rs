// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A connection to an NBD server, as the ring of a disk: the session, and the socket that it
//! sends and receives on without waiting.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::handshake::Export;
use super::session::Session;
use super::stream::Stream;
use super::wire::{CMD_DISC, Request};
use crate::disk::ring::{Io, Ring, Waker};
use crate::disk::wake::Wake;

/// A connection in the transmission phase.
pub(super) struct Connection {
    stream: Stream,
    session: Session,
    wake: Wake,
    /// Why it has ended. Operations that ended before are reported first.
    broken: Option<io::Error>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("in_flight", &self.session.in_flight())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// After the handshake.
    pub(super) fn new(stream: Stream, export: Export) -> io::Result<Self> {
        stream.set_nonblocking()?;
        Ok(Self {
            stream,
            session: Session::new(export),
            wake: Wake::new()?,
            broken: None,
        })
    }

    /// What wakes the thread that waits in [`Ring::turn`].
    pub(super) fn waker(&self) -> Waker {
        self.wake.waker()
    }

    /// Waits until something can be received, or sent if there is something, or for the waker.
    fn wait(&self) -> io::Result<()> {
        let mut events = PollFlags::IN;
        if self.stream.wants_write() || self.session.output().next().is_some() {
            events |= PollFlags::OUT;
        }
        let mut waits = [
            PollFd::from_borrowed_fd(self.stream.as_fd(), events),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !waits[1].revents().is_empty() {
            self.wake.clear();
        }
        Ok(())
    }

    /// Sends as much as the kernel takes.
    fn send(&mut self) -> io::Result<()> {
        loop {
            let pieces: Vec<_> = self.session.output().map(IoSlice::new).collect();
            match would_block(self.stream.write(&pieces))? {
                None | Some(0) => return Ok(()),
                Some(count) => self.session.sent(count),
            }
        }
    }

    /// Receives what there is, up to the memory of one read and the staging area. What is left
    /// in the socket makes the next wait short.
    fn receive(&mut self, ended: &mut Vec<(Io, i32)>) -> io::Result<()> {
        loop {
            let mut pieces = self.session.input().map(IoSliceMut::new);
            match would_block(self.stream.read(&mut pieces))? {
                None => return Ok(()),
                Some(0) => {
                    let what = "the server has closed it";
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, what));
                }
                Some(count) => self.session.received(count, ended)?,
            }
            if !self.stream.may_have_more() {
                return Ok(());
            }
        }
    }
}

/// `None` where it would have to wait.
fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        },
    }
}

impl Ring for Connection {
    const NAME: &'static str = "the connection to the server";

    fn push(&mut self, io: Io) -> Result<(), Io> {
        self.session.push(io)
    }

    fn turn(&mut self, wait: bool, ended: &mut Vec<(Io, i32)>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.session.take_ended(ended);
        let mut transfer = || {
            if wait && ended.is_empty() {
                self.wait()?;
            }
            // Also where it cannot send: what was answered counts.
            let sent = self.send();
            self.receive(ended).and(sent)
        };
        let transferred = transfer();
        self.session.take_ended(ended);
        match transferred {
            Err(error) if !ended.is_empty() => {
                self.broken = Some(error);
                Ok(())
            }
            other => other,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.session.output().next().is_some() {
            // It would be taken for a part of a request.
            return;
        }
        let goodbye = Request {
            flags: 0,
            command: CMD_DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        // The server notices all the same.
        let _ = self.stream.write(&[IoSlice::new(&goodbye.encode())]);
        self.stream.close();
    }
}
