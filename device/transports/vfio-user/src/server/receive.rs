// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Exact reads with descriptors that a stop interrupts.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::Errno;
use super::connection::{End, Error};
use super::refusal::Refusal;
use super::version::MAX_MSG_FDS;

/// Descriptors that came with one message. Dropping closes them.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    files: Vec<OwnedFd>,
    /// More than [`MAX_MSG_FDS`] came; the excess is closed.
    excess: bool,
    /// The kernel dropped some.
    lost: bool,
}

impl Descriptors {
    fn add(&mut self, file: OwnedFd) {
        if self.files.len() < MAX_MSG_FDS {
            self.files.push(file);
        } else {
            self.excess = true;
        }
    }

    /// The descriptors, if at most `max` came and none was lost.
    pub(super) fn at_most(self, max: usize) -> Result<Vec<OwnedFd>, Refusal> {
        let got = self.files.len() + usize::from(self.excess);
        if got > max {
            return Err(Refusal::Descriptors { expected: max, got });
        }
        if self.lost {
            return Err(Refusal::DescriptorsLost);
        }
        Ok(self.files)
    }
}

/// The receiving side of a connection.
pub(super) struct Receiver<'a> {
    socket: BorrowedFd<'a>,
    stop: BorrowedFd<'a>,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(socket: BorrowedFd<'a>, stop: BorrowedFd<'a>) -> Self {
        Self { socket, stop }
    }

    /// Waits until the socket is readable.
    pub(super) fn wait(&self) -> Result<(), End> {
        wait_for(self.socket, PollFlags::IN, self.stop)
    }

    /// Fills `buffer` from the stream, waiting for what is not there yet. Descriptors that come
    /// with any of the bytes are added to `files`: the sender may have split the message.
    ///
    /// Reads not one byte more; so the descriptors of the next message stay with it.
    pub(super) fn fill(&self, buffer: &mut [u8], files: &mut Descriptors) -> Result<(), End> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.receive(&mut buffer[filled..], files) {
                Ok(0) => return Err(End::HangUp),
                Ok(bytes) => filled += bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(Errno::CONNRESET) => return Err(End::HangUp),
                Err(errno) => return Err(End::Failed(Error::Receive(errno))),
            }
            if filled < buffer.len() {
                self.wait()?;
            }
        }
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8], files: &mut Descriptors) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            self.socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        let mut count = 0;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                for file in rights {
                    count += 1;
                    files.add(file);
                }
            }
        }
        // The kernel truncates for lack of room in `space`, which more descriptors than are
        // allowed exceed, or for lack of room in the descriptor table of this process.
        if received.flags.contains(ReturnFlags::CTRUNC) {
            if count >= MAX_MSG_FDS {
                files.excess = true;
            } else {
                files.lost = true;
            }
        }
        Ok(received.bytes)
    }
}

/// Waits for `events` on `file`; `stop` ends the wait.
pub(super) fn wait_for(
    file: BorrowedFd<'_>,
    events: PollFlags,
    stop: BorrowedFd<'_>,
) -> Result<(), End> {
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(file, events),
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(End::Failed(Error::Poll(errno))),
        }
        if !polled[1].revents().is_empty() {
            return Err(End::Stopped);
        }
        if !polled[0].revents().is_empty() {
            return Ok(());
        }
    }
}
