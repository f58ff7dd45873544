// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bytes of the NBD protocol, as <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>
//! defines them. All numbers are big-endian.

/// First bytes of a server.
pub(super) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Then, in the newstyle handshake; and first bytes of each option of the client.
pub(super) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Second magic of the oldstyle handshake.
pub(super) const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
/// First bytes of each reply to an option.
pub(super) const REPLY_TO_OPTION: u64 = 0x0003_e889_0455_65a9;

/// Flag of the server and of the client: options have replies.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
/// The same for a handshake without 124 zeros at its end.
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// Option: begin TLS.
pub(super) const OPT_STARTTLS: u32 = 5;
/// Option: describe an export and use it.
pub(super) const OPT_GO: u32 = 7;

/// Reply to an option: it is granted, and there are no further replies.
pub(super) const REP_ACK: u32 = 1;
/// Reply to an option: information on an export.
pub(super) const REP_INFO: u32 = 3;
/// Bit of all replies that refuse an option.
pub(super) const REP_ERROR: u32 = 1 << 31;
/// The server does not know the option.
pub(super) const REP_ERR_UNSUP: u32 = REP_ERROR + 1;
/// The server does not want to.
pub(super) const REP_ERR_POLICY: u32 = REP_ERROR + 2;
/// The server wants TLS first.
pub(super) const REP_ERR_TLS_REQD: u32 = REP_ERROR + 5;
/// There is no such export.
pub(super) const REP_ERR_UNKNOWN: u32 = REP_ERROR + 6;

/// Information: size and flags of an export.
pub(super) const INFO_EXPORT: u16 = 0;
/// Information: which offsets and lengths the server executes.
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Flag of an export: it takes no writes.
pub(super) const FLAG_READ_ONLY: u16 = 1 << 1;
/// Flag of an export: it executes [`CMD_FLUSH`].
pub(super) const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// Flag of an export: it executes [`CMD_WRITE_ZEROES`].
pub(super) const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;

/// Flag of [`CMD_WRITE_ZEROES`]: the zeros have space.
pub(super) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Bytes of a request, without the data that follow those of a write.
pub(super) const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply, without the data that follow those of a read.
pub(super) const REPLY_BYTES: usize = 16;

/// A request of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    pub(super) fn encode(self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// A simple reply of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// 0, or an error of the protocol.
    pub(super) error: u32,
    pub(super) cookie: u64,
}

impl Reply {
    /// `None` where it is no simple reply.
    pub(super) fn parse(bytes: [u8; REPLY_BYTES]) -> Option<Self> {
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = bytes;
        (u32::from_be_bytes([m0, m1, m2, m3]) == SIMPLE_REPLY_MAGIC).then_some(Self {
            error: u32::from_be_bytes([e0, e1, e2, e3]),
            cookie: u64::from_be_bytes(cookie),
        })
    }
}

/// Error of a reply: the server is shutting down, and will execute no further requests.
pub(super) const ESHUTDOWN: u32 = 108;

/// The error number of this system for one of the protocol. The server chooses the number, so
/// one that the protocol does not have means no more than that there was an error.
pub(super) const fn errno(error: u32) -> i32 {
    match error {
        1 => libc::EPERM,
        12 => libc::ENOMEM,
        22 => libc::EINVAL,
        28 => libc::ENOSPC,
        75 => libc::EOVERFLOW,
        95 => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

#[cfg(test)]
pub(super) mod test {
    //! The server's side.

    use super::*;

    impl Request {
        pub(in super::super) fn parse(bytes: [u8; REQUEST_BYTES]) -> Self {
            assert_eq!(bytes[..4], REQUEST_MAGIC.to_be_bytes());
            Self {
                flags: u16::from_be_bytes(bytes[4..6].try_into().unwrap()),
                command: u16::from_be_bytes(bytes[6..8].try_into().unwrap()),
                cookie: u64::from_be_bytes(bytes[8..16].try_into().unwrap()),
                offset: u64::from_be_bytes(bytes[16..24].try_into().unwrap()),
                length: u32::from_be_bytes(bytes[24..].try_into().unwrap()),
            }
        }
    }

    impl Reply {
        pub(in super::super) fn encode(self) -> [u8; REPLY_BYTES] {
            let mut bytes = [0; REPLY_BYTES];
            bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
            bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
            bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
            bytes
        }
    }

    /// The examples are from the specification's description of the messages.
    #[test]
    fn messages_have_the_layout_of_the_protocol() {
        let request = Request {
            flags: 0x0102,
            command: CMD_WRITE_ZEROES,
            cookie: 0x1112_1314_1516_1718,
            offset: 0x2122_2324_2526_2728,
            length: 0x3132_3334,
        };
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 1, 2, 0, 6, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
            0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x31, 0x32, 0x33, 0x34,
        ];
        assert_eq!(request.encode(), bytes);
        let mut bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8];
        let reply = Reply {
            error: 5,
            cookie: 0x0102_0304_0506_0708,
        };
        assert_eq!(Reply::parse(bytes), Some(reply));
        bytes[0] ^= 1;
        assert_eq!(Reply::parse(bytes), None);
    }

    #[test]
    fn errors_are_those_of_this_system() {
        for (error, expected) in [
            (1, libc::EPERM),
            (5, libc::EIO),
            (12, libc::ENOMEM),
            (22, libc::EINVAL),
            (28, libc::ENOSPC),
            (75, libc::EOVERFLOW),
            (95, libc::ENOTSUP),
            // EINTR and EAGAIN would be repeated.
            (4, libc::EIO),
            (11, libc::EIO),
            (u32::MAX, libc::EIO),
        ] {
            assert_eq!(errno(error), expected, "{error}");
        }
    }
}
