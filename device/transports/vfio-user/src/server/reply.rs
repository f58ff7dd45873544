// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Replies from any thread.
//!
//! A message goes out whole before the next: the threads share a lock. A client that does not
//! receive blocks whoever answers it; the stop descriptor and the end of the connection wake
//! them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::Errno;
use super::connection::{End, Error};
use super::receive::wait_for;
use super::refusal::Refusal;
use super::wire::{DMA_UNMAP_BYTES, Header, Message};

/// Greatest number of [`Reply`]s of one connection that are pending at once.
pub const MAX_PENDING_REPLIES: usize = 256;

/// The answer to one command, which may be given from any thread.
///
/// Dropped without an answer it answers `EIO`. A command with `No_reply` gets nothing either way.
#[derive(Debug)]
#[must_use = "the client waits for the answer"]
pub struct Reply {
    command: Header,
    body: Body,
    replies: Arc<Replies>,
    answered: bool,
}

/// Body of a reply that does not depend on the result.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Empty,
    DmaUnmap([u8; DMA_UNMAP_BYTES]),
}

impl Reply {
    /// Answers that the command succeeded.
    pub fn ok(mut self) {
        let mut message = Message::new();
        if let Body::DmaUnmap(body) = &self.body {
            message.bytes(body);
        }
        let result = self.replies.reply(&self.command, &mut message, None);
        self.finish(result);
    }

    /// Answers that the command failed.
    pub fn error(mut self, errno: Errno) {
        self.fail(errno);
    }

    fn fail(&mut self, errno: Errno) {
        let result = self.replies.refuse(&self.command, Refusal::Device(errno));
        self.finish(result);
    }

    fn finish(&mut self, result: Result<(), End>) {
        // The receiving thread learns of the end by itself.
        if let Err(end) = result {
            tracing::debug!(
                command = self.command.command,
                ?end,
                "vfio-user: reply not sent"
            );
        }
        self.answered = true;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.fail(Errno::IO);
        }
        self.replies.leave();
    }
}

/// The sending side of a connection.
#[derive(Debug)]
pub(super) struct Replies {
    socket: UnixStream,
    stop: OwnedFd,
    /// Held while a message goes out. Error of the socket that interrupted one.
    sending: Mutex<Option<Errno>>,
    /// Number of [`Reply`]s.
    pending: Mutex<usize>,
    /// Readable when `pending` has fallen below the limit.
    room: OwnedFd,
}

impl Replies {
    pub(super) fn new(socket: &UnixStream, stop: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            socket: socket.try_clone()?,
            stop: stop.try_clone_to_owned()?,
            sending: Mutex::default(),
            pending: Mutex::new(0),
            room: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// A reply to `command`, to be answered later.
    pub(super) fn later(self: &Arc<Self>, command: &Header, body: Body) -> Reply {
        *lock(&self.pending) += 1;
        Reply {
            command: *command,
            body,
            replies: Arc::clone(self),
            answered: false,
        }
    }

    fn leave(&self) {
        let mut pending = lock(&self.pending);
        *pending -= 1;
        if *pending == MAX_PENDING_REPLIES - 1 {
            // Cannot fail: the counter is far from its limit.
            let _ = rustix::io::write(&self.room, &1u64.to_ne_bytes());
        }
    }

    /// Waits until fewer than [`MAX_PENDING_REPLIES`] are pending.
    pub(super) fn wait_for_room(&self) -> Result<(), End> {
        while *lock(&self.pending) >= MAX_PENDING_REPLIES {
            wait_for(self.room.as_fd(), PollFlags::IN, self.stop.as_fd())?;
            // Only this thread reads; a signal left over from before costs one more turn.
            let _ = rustix::io::read(&self.room, &mut [0; 8]);
        }
        Ok(())
    }

    /// Sends `message` as the reply to `command`, with `file`.
    pub(super) fn reply(
        &self,
        command: &Header,
        message: &mut Message,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), End> {
        if command.no_reply() {
            return Ok(());
        }
        self.send(message.reply_to(command), file)
    }

    /// Sends the error reply to `command`.
    pub(super) fn refuse(&self, command: &Header, refusal: Refusal) -> Result<(), End> {
        tracing::debug!(command = command.command, %refusal, "vfio-user: error reply");
        if command.no_reply() {
            return Ok(());
        }
        self.send(&command.error_reply(refusal.errno()).to_bytes(), None)
    }

    fn send(&self, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), End> {
        let mut failure = lock(&self.sending);
        let result = self.send_all(bytes, file);
        if let Err(end) = &result {
            if let End::Failed(Error::Send(errno)) = end {
                *failure = Some(*errno);
            }
            // The message may have gone out in part: nothing may follow, and the receiving
            // thread, whichever thread this is, sees a hang-up. An error means that the
            // connection is gone already.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        result
    }

    fn send_all(&self, mut bytes: &[u8], mut file: Option<BorrowedFd<'_>>) -> Result<(), End> {
        while !bytes.is_empty() {
            match self.send_some(bytes, file) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    // The descriptor went with the first bytes.
                    file = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    wait_for(self.socket.as_fd(), PollFlags::OUT, self.stop.as_fd())?;
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(End::HangUp),
                Err(errno) => return Err(End::Failed(Error::Send(errno))),
            }
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = file.as_slice();
        if !files.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(files));
            debug_assert!(fits, "the space is for one descriptor");
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )
    }

    /// Ends the connection. Later replies have no effect.
    pub(super) fn close(&self) {
        // Wakes a thread that waits for the client to receive, which holds the lock. An error
        // means that the connection is gone already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Error of the socket that kept a reply from being sent.
    pub(super) fn failure(&self) -> Option<Errno> {
        *lock(&self.sending)
    }
}

/// Locks `mutex`. No code panics while it holds one of the locks here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
