// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The loop over the messages of one client.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::dispatch::Session;
use super::receive::{Descriptors, Receiver};
use super::refusal::Refusal;
use super::reply::Replies;
use super::wire::{HEADER_BYTES, Header, MAX_MESSAGE_BYTES};
use super::{Backend, Errno};

/// Reason for which [`serve`] gave a client up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection could not be set up.
    #[error("setting up the connection of a vfio-user client")]
    Setup(#[source] std::io::Error),
    /// The socket or the stop descriptor could not be polled.
    #[error("waiting for the vfio-user client")]
    Poll(#[source] Errno),
    /// A message could not be received.
    #[error("receiving from the vfio-user client")]
    Receive(#[source] Errno),
    /// A reply could not be sent.
    #[error("sending to the vfio-user client")]
    Send(#[source] Errno),
    /// The size of a message is below that of a header or above [`MAX_MESSAGE_BYTES`], so the
    /// beginning of the next message is unknown.
    #[error(
        "the vfio-user client sent a message of {0} bytes; {HEADER_BYTES} to {MAX_MESSAGE_BYTES} \
         are possible"
    )]
    MessageSize(u32),
    /// The client speaks another major version of the protocol.
    #[error("the vfio-user client proposed version {0}.{1}; only major version 0 is supported")]
    Version(u16, u16),
}

/// End of a connection.
#[derive(Debug)]
pub(super) enum End {
    /// The client closed the connection.
    HangUp,
    /// The stop descriptor became readable.
    Stopped,
    /// The connection is useless.
    Failed(Error),
}

/// Serves one connected client until it hangs up, `stop` becomes readable, or it breaks the
/// protocol beyond repair.
///
/// `stop` also interrupts a message received in part and a reply sent in part, from whichever
/// thread; it is not read. The client sees the end of the connection when this function returns,
/// even if a [`Reply`](super::Reply) is pending: answering that one later has no effect.
///
/// # Errors
///
/// The connection was lost otherwise than by a hang-up, or the client broke the protocol.
pub fn serve(
    socket: UnixStream,
    backend: &mut impl Backend,
    stop: BorrowedFd<'_>,
) -> Result<(), Error> {
    let replies = Arc::new(Replies::new(&socket, stop).map_err(Error::Setup)?);
    let end = receive_all(&Receiver::new(socket.as_fd(), stop), backend, &replies);
    replies.close();
    match end {
        // A thread that failed to send ends the connection by a shutdown.
        End::HangUp => replies
            .failure()
            .map_or(Ok(()), |errno| Err(Error::Send(errno))),
        End::Stopped => Ok(()),
        End::Failed(error) => Err(error),
    }
}

fn receive_all(receiver: &Receiver<'_>, backend: &mut impl Backend, replies: &Arc<Replies>) -> End {
    let mut session = Session::new(backend, Arc::clone(replies));
    let mut body = Vec::new();
    loop {
        if let Err(end) = receive_one(receiver, &mut session, replies, &mut body) {
            return end;
        }
    }
}

/// Receives and processes one message. `body` is a buffer that all messages share.
fn receive_one(
    receiver: &Receiver<'_>,
    session: &mut Session<'_, impl Backend>,
    replies: &Replies,
    body: &mut Vec<u8>,
) -> Result<(), End> {
    replies.wait_for_room()?;
    receiver.wait()?;
    let mut header = [0; HEADER_BYTES];
    let mut files = Descriptors::default();
    receiver.fill(&mut header, &mut files)?;
    let header = Header::from_bytes(&header);

    let size = header.size as usize;
    let refusal = if size < HEADER_BYTES {
        Some(Refusal::MessageTooShort(header.size))
    } else if size > MAX_MESSAGE_BYTES {
        Some(Refusal::MessageTooLong(header.size))
    } else {
        None
    };
    if let Some(refusal) = refusal {
        if !header.is_reply() {
            replies.refuse(&header, refusal)?;
        }
        return Err(End::Failed(Error::MessageSize(header.size)));
    }

    let len = size - HEADER_BYTES;
    if body.len() < len {
        body.resize(len, 0);
    }
    let body = &mut body[..len];
    receiver.fill(body, &mut files)?;
    session.process(&header, body, files)
}
