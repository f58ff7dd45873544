// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A socket with messages in both directions, which never blocks.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::message::{HEADER, MAX_BODY, MAX_FILES, Message};

/// Messages that may wait to be sent: some more than the state of 256 queues has.
const MAX_WAITING: usize = 4096;

/// What [`Channel::receive`] finds.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    /// A message is not there as a whole yet.
    Nothing,
    /// The other side has hung up.
    End,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// The first bytes of a message, and its descriptors.
    partial: Vec<u8>,
    files: Vec<Rc<OwnedFd>>,
    waiting: VecDeque<Message>,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    pub(crate) fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let socket = socket.into();
        ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket,
            partial: Vec::with_capacity(HEADER + MAX_BODY),
            files: Vec::new(),
            waiting: VecDeque::new(),
        })
    }

    /// The events to wait for, where messages are wanted or not.
    pub(crate) fn events(&self, wants_messages: bool) -> PollFlags {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, wants_messages);
        events.set(PollFlags::OUT, !self.waiting.is_empty());
        events
    }

    /// Receives the rest of a message.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be read, or what comes is no message.
    pub(crate) fn receive(&mut self) -> io::Result<Received> {
        loop {
            let wanted = match self.partial.len() {
                length if length < HEADER => HEADER,
                _ => {
                    let body = Message::body_length(&self.partial);
                    HEADER + body.ok_or_else(|| invalid("a message is too long"))?
                }
            };
            let missing = wanted.saturating_sub(self.partial.len());
            if missing == 0 {
                return self.take().map(Received::Message);
            }
            match self.read(missing)? {
                None => return Ok(Received::Nothing),
                Some(0) if self.partial.is_empty() => return Ok(Received::End),
                Some(0) => return Err(invalid("a message was cut off")),
                Some(_) => {}
            }
        }
    }

    /// Appends at most `missing` bytes; returns how many, `None` where none are there.
    fn read(&mut self, missing: usize) -> io::Result<Option<usize>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; HEADER + MAX_BODY];
        let Some(target) = bytes.get_mut(..missing) else {
            return Err(invalid("a message is too long"));
        };
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(target)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files.map(Rc::new));
            }
        }
        match received {
            Ok(_) if self.files.len() > MAX_FILES => Err(invalid("too many descriptors")),
            Ok(received) => {
                self.partial
                    .extend(bytes.get(..received.bytes).unwrap_or_default());
                Ok(Some(received.bytes))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::CONNRESET) => Ok(Some(0)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn take(&mut self) -> io::Result<Message> {
        let files = std::mem::take(&mut self.files);
        let (header, body) = self.partial.split_at_checked(HEADER).unwrap_or_default();
        let message = Message::from_parts(header, body, files);
        self.partial.clear();
        message.ok_or_else(|| invalid("a message has no header"))
    }

    /// Sends a message, behind those that wait.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be written to, or the other side reads nothing.
    pub(crate) fn send(&mut self, message: Message) -> io::Result<()> {
        if self.waiting.len() == MAX_WAITING {
            return Err(invalid("nobody reads the messages"));
        }
        self.waiting.push_back(message);
        self.flush()
    }

    /// Whether the other side has hung up, also where it has sent messages before.
    pub(crate) fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let none = Timespec::default();
        poll(&mut fds, Some(&none)).is_ok_and(|ready| ready > 0)
    }

    /// Whether all messages were sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some(message) = self.waiting.front() {
            if !send(&self.socket, message)? {
                return Ok(());
            }
            self.waiting.pop_front();
        }
        Ok(())
    }
}

/// Sends a message at once; returns whether there was room for it.
fn send(socket: &OwnedFd, message: &Message) -> io::Result<bool> {
    let bytes = message.to_bytes();
    let files: Vec<_> = message.files.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(invalid("too many descriptors"));
    }
    let flags = SendFlags::NOSIGNAL;
    match sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags) {
        // A message is less than a page, which the kernel takes as a whole.
        Ok(sent) if sent == bytes.len() => Ok(true),
        Ok(_) => Err(invalid("a message was sent in part")),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_come_in_parts_with_their_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours).unwrap();
        assert!(matches!(channel.receive(), Ok(Received::Nothing)));
        let bytes = Message::with_body(5, [7; 40]).to_bytes();
        for part in bytes.chunks(5) {
            assert!(matches!(channel.receive(), Ok(Received::Nothing)));
            (&theirs).write_all(part).unwrap();
        }
        let Ok(Received::Message(message)) = channel.receive() else {
            panic!("no message");
        };
        assert_eq!((message.request, &message.body[..]), (5, &[7; 40][..]));

        let (reader, mut writer) = io::pipe().unwrap();
        let mut other = Channel::new(theirs).unwrap();
        let mut message = Message::new(12);
        message.files.push(Rc::new(reader.into()));
        other.send(message).unwrap();
        let Ok(Received::Message(mut message)) = channel.receive() else {
            panic!("no message");
        };
        writer.write_all(b"x").unwrap();
        drop((other, writer));
        let file = Rc::into_inner(message.files.pop().unwrap()).unwrap();
        let mut text = String::new();
        io::PipeReader::from(file)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "x");
        assert!(matches!(channel.receive(), Ok(Received::End)));
    }

    #[test]
    fn a_length_that_no_message_has_is_refused() {
        for length in [MAX_BODY as u32 + 1, u32::MAX] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let words = [1, 1, length];
            let bytes: Vec<u8> = words.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect();
            theirs.write_all(&bytes).unwrap();
            assert!(Channel::new(ours).unwrap().receive().is_err());
        }
    }

    #[test]
    fn messages_wait_for_a_reader() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut channel, mut other) = (Channel::new(ours).unwrap(), Channel::new(theirs).unwrap());
        for number in 0..MAX_WAITING as u32 {
            channel.send(Message::new(number)).unwrap();
        }
        assert!(!channel.is_flushed());
        for number in 0..MAX_WAITING as u32 {
            let Ok(Received::Message(message)) = other.receive() else {
                panic!("no message");
            };
            assert_eq!(message.request, number);
            channel.flush().unwrap();
        }
        assert!(channel.is_flushed());
    }
}
