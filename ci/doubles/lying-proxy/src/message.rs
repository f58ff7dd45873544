// SPDX-License-Identifier: Apache-2.0 OR MIT

//! vhost-user messages with their file descriptors ("Message Specification" of QEMU's
//! `docs/interop/vhost-user.rst`).

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Numbers of the requests that the proxy interprets.
pub(crate) mod request {
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const GET_CONFIG: u32 = 24;
}

/// Maximum number of file descriptors of a message.
const MAX_FILES: usize = 32;

/// Maximum accepted length of a body, above that of all specified messages.
const MAX_BODY: u32 = 1 << 16;

const HEADER: usize = 12;

/// A message in either direction.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
}

impl Message {
    /// Waits for a message; `None` if the other side has hung up.
    pub(crate) fn receive(stream: &UnixStream) -> io::Result<Option<Self>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut header = [0; HEADER];
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let read = match received {
            Ok(received) if received.bytes == 0 => return Ok(None),
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let files = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(files) => Some(files),
                _ => None,
            })
            .flatten()
            .collect();
        let mut rest = stream;
        rest.read_exact(&mut header[read..])?;
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let length = word(8);
        if length > MAX_BODY {
            return Err(invalid(format!("a message of {length} bytes")));
        }
        let mut body = vec![0; length as usize];
        rest.read_exact(&mut body)?;
        Ok(Some(Self {
            request: word(0),
            flags: word(4),
            body,
            files,
        }))
    }

    /// Sends the message.
    pub(crate) fn send(&self, stream: &UnixStream) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        // Bodies are at most `MAX_BODY` and one region long.
        for word in [self.request, self.flags, self.body.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&self.body);
        let files: Vec<_> = self.files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(invalid(format!("{} descriptors in a message", files.len())));
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let sent = sendmsg(
                stream,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
            rest = &rest[sent..];
            // The descriptors were sent with the first byte.
            control.clear();
        }
        Ok(())
    }

    /// The 32-bit word at byte `at` of the body.
    pub(crate) fn word(&self, at: usize) -> io::Result<u32> {
        self.field(at).map(u32::from_ne_bytes)
    }

    /// The 64-bit word at byte `at` of the body.
    pub(crate) fn long(&self, at: usize) -> io::Result<u64> {
        self.field(at).map(u64::from_ne_bytes)
    }

    /// Replaces the 64-bit word at byte `at` of the body.
    pub(crate) fn set_long(&mut self, at: usize, value: u64) -> io::Result<()> {
        self.body
            .get_mut(at..at + 8)
            .ok_or_else(|| invalid(format!("request {} is too short", self.request)))?
            .copy_from_slice(&value.to_ne_bytes());
        Ok(())
    }

    fn field<const N: usize>(&self, at: usize) -> io::Result<[u8; N]> {
        self.body
            .get(at..at + N)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| invalid(format!("request {} is too short", self.request)))
    }
}

/// An error about a malformed message.
pub(crate) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn messages_go_through_with_their_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let mut message = Message {
            request: 5,
            flags: 1,
            body: (0..40).collect(),
            files: vec![reader.into(), writer.into()],
        };
        message.set_long(8, 0x1122).unwrap();
        message.send(&ours).unwrap();
        drop(message);
        let mut message = Message::receive(&theirs).unwrap().unwrap();
        assert_eq!((message.request, message.flags), (5, 1));
        assert_eq!(message.long(8).unwrap(), 0x1122);
        assert_eq!(message.word(36).unwrap(), 0x2726_2524);
        assert!(message.word(37).is_err());
        assert!(message.set_long(33, 0).is_err());
        let mut writer = io::PipeWriter::from(message.files.pop().unwrap());
        let mut reader = io::PipeReader::from(message.files.pop().unwrap());
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(ours);
        assert!(Message::receive(&theirs).unwrap().is_none());
    }
}
