// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What supervisor and worker say to each other beside vhost-user, on a socket that is the
//! worker's standard input.
//!
//! | from | packet | descriptors |
//! |---|---|---|
//! | supervisor | [`Start`] | listening socket with one connection; record; control socket, if there is one; what a worker has left |
//! | worker | ready | what the next workers need: the supervisor keeps it |
//! | worker | asked to end | |
//!
//! A packet is its kind and its further bytes. Another version of the program may be at the other
//! end, so a packet is never changed: a new one gets another kind, and the supervisor ignores those
//! that it does not know.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Greatest number of descriptors that the supervisor keeps.
pub const MAX_KEPT: usize = 8;

/// Greatest number of descriptors of a packet.
const MAX_FILES: usize = MAX_KEPT + 3;

const START: u8 = b'S';
const READY: u8 = b'R';
const ASKED_TO_END: u8 = b'E';

/// What a worker starts with.
#[derive(Debug)]
pub struct Start {
    /// A listening socket, on which one connection waits.
    pub listener: UnixListener,
    /// The record of what is in flight.
    pub record: File,
    /// The listening control socket.
    pub control: Option<UnixListener>,
    /// What the first worker has given to [`Handover::ready`]; empty for that one.
    pub kept: Vec<OwnedFd>,
    /// Whether another worker has served this connection before.
    pub resumes: bool,
}

/// The worker's end.
#[derive(Debug)]
pub struct Handover(OwnedFd);

impl Handover {
    /// Takes over from the supervisor that has started this process.
    ///
    /// # Errors
    ///
    /// Where there is none.
    pub fn receive() -> io::Result<(Self, Start)> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let (bytes, files) = receive(&socket, RecvFlags::empty())?;
        let mut files = files.into_iter();
        let wrong = || io::Error::other("no supervisor has started this process");
        let [START, resumes, has_control] = bytes[..] else {
            return Err(wrong());
        };
        let (listener, record) = (files.next(), files.next());
        let start = Start {
            listener: listener.ok_or_else(wrong)?.into(),
            record: record.ok_or_else(wrong)?.into(),
            control: match has_control {
                0 => None,
                _ => Some(files.next().ok_or_else(wrong)?.into()),
            },
            kept: files.collect(),
            resumes: resumes != 0,
        };
        Ok((Self(socket), start))
    }

    /// Says that this worker can serve the connection, and gives the supervisor what the next
    /// workers need, at most [`MAX_KEPT`] descriptors. The supervisor keeps those of the first
    /// worker.
    pub fn ready(&self, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(&self.0, &[READY], kept)
    }

    /// Says that somebody has asked this worker to end: no other one takes over from it, whatever
    /// it ends of. From any thread.
    pub fn asked_to_end(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &[ASKED_TO_END])?;
        Ok(())
    }
}

/// Sends a [`Start`] to a worker.
pub(crate) fn send_start(socket: &OwnedFd, start: &StartRef<'_>) -> io::Result<()> {
    let mut files = vec![start.listener, start.record];
    files.extend(start.control);
    files.extend(start.kept.iter().map(AsFd::as_fd));
    let bytes = [START, start.resumes.into(), start.control.is_some().into()];
    send(socket, &bytes, &files)
}

/// [`Start`] for whoever sends it.
pub(crate) struct StartRef<'a> {
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) record: BorrowedFd<'a>,
    pub(crate) control: Option<BorrowedFd<'a>>,
    pub(crate) kept: &'a [OwnedFd],
    pub(crate) resumes: bool,
}

/// What a worker says.
#[derive(Debug)]
pub(crate) enum FromWorker {
    Ready(Vec<OwnedFd>),
    AskedToEnd,
    /// What a worker of another version says.
    Unknown,
    /// Nothing so far.
    Later,
    /// It has closed the socket.
    Nothing,
}

/// Receives what a worker says.
pub(crate) fn receive_from_worker(socket: &OwnedFd) -> FromWorker {
    match receive(socket, RecvFlags::DONTWAIT) {
        Ok((bytes, files)) if bytes == [READY] && files.len() <= MAX_KEPT => {
            FromWorker::Ready(files)
        }
        Ok((bytes, files)) if bytes == [ASKED_TO_END] && files.is_empty() => FromWorker::AskedToEnd,
        Ok((bytes, _)) if !bytes.is_empty() => FromWorker::Unknown,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => FromWorker::Later,
        _ => FromWorker::Nothing,
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    Ok(())
}

fn receive(socket: &OwnedFd, flags: RecvFlags) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 8];
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let files = files.flatten().collect();
    let bytes = bytes.get(..received.bytes).unwrap_or_default();
    Ok((bytes.to_vec(), files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    /// A supervisor that goes on with the program of another version hears the rest.
    #[test]
    fn packets_of_another_version_are_ignored() {
        let (domain, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(domain, kind, SocketFlags::CLOEXEC, None).unwrap();
        assert!(matches!(receive_from_worker(&ours), FromWorker::Later));
        for unknown in [&b"x"[..], b"RE", b"E5", &[0; 100]] {
            send(&theirs, unknown, &[]).unwrap();
            assert!(matches!(receive_from_worker(&ours), FromWorker::Unknown));
        }
        let worker = Handover(theirs);
        worker.ready(&[ours.as_fd(); MAX_KEPT]).unwrap();
        worker.asked_to_end().unwrap();
        let FromWorker::Ready(kept) = receive_from_worker(&ours) else {
            panic!("the worker is ready");
        };
        assert_eq!(kept.len(), MAX_KEPT);
        assert!(matches!(receive_from_worker(&ours), FromWorker::AskedToEnd));
        drop(worker);
        drop(kept);
        assert!(matches!(receive_from_worker(&ours), FromWorker::Nothing));
    }
}
