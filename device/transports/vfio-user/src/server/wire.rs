// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Headers and bodies of messages as bytes. Everything is in the byte order of the host, as the
//! specification says.

use super::version::MAX_DATA_XFER_SIZE;

/// Length of a header in bytes.
pub(super) const HEADER_BYTES: usize = 16;
/// Length of the fixed part of a region access, in bytes.
pub(super) const ACCESS_BYTES: usize = 16;
/// Length of a `VFIO_USER_DMA_MAP` body in bytes.
pub(super) const DMA_MAP_BYTES: usize = 32;
/// Length of a `VFIO_USER_DMA_UNMAP` body in bytes, in the command and in the reply.
pub(super) const DMA_UNMAP_BYTES: usize = 24;
/// Length of a `VFIO_USER_DEVICE_GET_INFO` body in bytes, in the command and in the reply.
pub(super) const DEVICE_INFO_BYTES: usize = 16;
/// Length of a `VFIO_USER_DEVICE_GET_REGION_INFO` body in bytes without capabilities.
pub(super) const REGION_INFO_BYTES: usize = 32;
/// Length of a `VFIO_USER_DEVICE_GET_IRQ_INFO` body in bytes, in the command and in the reply.
pub(super) const IRQ_INFO_BYTES: usize = 16;
/// Length of the fixed part of a `VFIO_USER_DEVICE_SET_IRQS` body in bytes.
pub(super) const IRQ_SET_BYTES: usize = 20;
/// Length of the fixed part of a `VFIO_USER_VERSION` body in bytes.
pub(super) const VERSION_BYTES: usize = 4;

/// Greatest size in bytes of a message: a region write of [`MAX_DATA_XFER_SIZE`] bytes.
pub const MAX_MESSAGE_BYTES: usize = HEADER_BYTES + ACCESS_BYTES + MAX_DATA_XFER_SIZE as usize;

/// Numbers of the commands that this server implements.
pub(super) mod command {
    pub(in super::super) const VERSION: u16 = 1;
    pub(in super::super) const DMA_MAP: u16 = 2;
    pub(in super::super) const DMA_UNMAP: u16 = 3;
    pub(in super::super) const DEVICE_GET_INFO: u16 = 4;
    pub(in super::super) const DEVICE_GET_REGION_INFO: u16 = 5;
    pub(in super::super) const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub(in super::super) const DEVICE_SET_IRQS: u16 = 8;
    pub(in super::super) const REGION_READ: u16 = 9;
    pub(in super::super) const REGION_WRITE: u16 = 10;
    pub(in super::super) const DEVICE_RESET: u16 = 13;
}

/// Bits of the flags that hold the type of a message.
const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Number that a reply repeats.
    pub(super) id: u16,
    /// What is to be done, or was.
    pub(super) command: u16,
    /// Size in bytes of the message, header included.
    pub(super) size: u32,
    /// Type, `No_reply`, `Error`.
    pub(super) flags: u32,
    /// `errno` of an error reply.
    pub(super) error: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            id: fields.u16(),
            command: fields.u16(),
            size: fields.u32(),
            flags: fields.u32(),
            error: fields.u32(),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&self.id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.error.to_ne_bytes());
        bytes
    }

    /// Whether the message is a reply to a command.
    pub(super) fn is_reply(&self) -> bool {
        self.flags & TYPE_MASK == TYPE_REPLY
    }

    /// Whether the message is a command without unknown flags.
    pub(super) fn is_command(&self) -> bool {
        self.flags & !NO_REPLY == TYPE_COMMAND
    }

    /// Whether the sender wants no reply.
    pub(super) fn no_reply(&self) -> bool {
        self.flags & NO_REPLY != 0
    }

    /// The header of the reply with `body` bytes behind it.
    pub(super) fn reply(&self, body: usize) -> Self {
        Self {
            size: u32::try_from(HEADER_BYTES + body).expect("a reply is shorter than 4 GiB"),
            flags: TYPE_REPLY,
            error: 0,
            ..*self
        }
    }

    /// The header of the error reply, which is the whole of it.
    pub(super) fn error_reply(&self, errno: rustix::io::Errno) -> Self {
        Self {
            flags: TYPE_REPLY | ERROR,
            error: errno.raw_os_error().unsigned_abs(),
            ..self.reply(0)
        }
    }
}

/// Reads the fields of a message from its beginning on.
///
/// A field past the end reads as 0; so callers check the length of the message first.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

/// A message to send: room for the header, then the fields of the body.
///
/// # Invariants
///
/// At least [`HEADER_BYTES`] long.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new() -> Self {
        // INVARIANT: as long as a header.
        Self(vec![0; HEADER_BYTES])
    }

    /// Removes the body.
    pub(super) fn clear(&mut self) {
        // INVARIANT: as long as a header.
        self.0.truncate(HEADER_BYTES);
    }

    pub(super) fn u16(&mut self, field: u16) -> &mut Self {
        self.bytes(&field.to_ne_bytes())
    }

    pub(super) fn u32(&mut self, field: u32) -> &mut Self {
        self.bytes(&field.to_ne_bytes())
    }

    pub(super) fn u64(&mut self, field: u64) -> &mut Self {
        self.bytes(&field.to_ne_bytes())
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends `len` zeros, to be overwritten.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        let start = self.0.len();
        self.0.resize(start + len, 0);
        &mut self.0[start..]
    }

    /// The whole message, as the reply to `command`.
    pub(super) fn reply_to(&mut self, command: &Header) -> &[u8] {
        let header = command.reply(self.0.len() - HEADER_BYTES);
        self.0[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_way_through_bytes() {
        let header = Header {
            id: 0x1234,
            command: 10,
            size: 0x89ab_cdef,
            flags: 0x10,
            error: 0x7654_3210,
        };
        assert_eq!(Header::from_bytes(&header.to_bytes()), header);
    }

    #[test]
    fn only_known_flags_make_a_command() {
        let header = |flags| Header {
            id: 0,
            command: 1,
            size: 16,
            flags,
            error: 0,
        };
        assert!(header(0).is_command());
        assert!(header(NO_REPLY).is_command());
        for bit in (0..32).filter(|bit| 1 << bit != NO_REPLY) {
            assert!(!header(1 << bit).is_command(), "bit {bit}");
        }
        assert!(header(TYPE_REPLY | ERROR | NO_REPLY).is_reply());
        assert!(!header(3).is_reply());
    }

    #[test]
    fn fields_past_the_end_are_zero() {
        let mut fields = Fields(&[1, 2, 3]);
        assert_eq!(fields.u16(), u16::from_ne_bytes([1, 2]));
        assert_eq!(fields.u64(), 0);
        assert_eq!(fields.u32(), 0);
    }
}
