// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The handshake of an NBD client: fixed newstyle, an option for TLS, and the choice of an
//! export by `NBD_OPT_GO`. Works on any stream, and knows no sockets.
//!
//! The server may be anything. Each of its replies is limited in size and number, so a
//! handshake ends once the stream does.

use std::io::{Read, Write};

use super::error::NbdError;
use super::wire::{
    FIXED_NEWSTYLE, FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_WRITE_ZEROES, IHAVEOPT,
    INFO_BLOCK_SIZE, INFO_EXPORT, NBDMAGIC, NO_ZEROES, OLDSTYLE, OPT_GO, OPT_STARTTLS, REP_ACK,
    REP_ERR_POLICY, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_ERROR, REP_INFO,
    REPLY_TO_OPTION,
};

/// Most bytes of a reply to an option. Strings of the protocol have 4096.
const MAX_REPLY: u32 = 16 << 10;

/// Most replies to one option.
const MAX_REPLIES: usize = 64;

/// Most bytes of a name (of any string of the protocol).
pub(super) const MAX_NAME: usize = 4096;

/// Most bytes of a read or write where the server does not say otherwise.
const DEFAULT_MAXIMUM: u32 = 32 << 20;

/// Smallest block where the server does not say otherwise. It should take single bytes then, and the
/// protocol advises a client that is to work with many servers to send whole blocks of this size.
const DEFAULT_MINIMUM: u32 = 512;

/// Greatest smallest block, which the protocol permits.
const MAX_MINIMUM: u32 = 64 << 10;

/// An export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Export {
    /// Bytes.
    pub(super) size: u64,
    /// Offsets and lengths are multiples of this, a power of two.
    pub(super) minimum: u32,
    /// Most bytes of a request, a multiple of `minimum` and at least as much.
    pub(super) maximum: u32,
    /// It can make writes durable.
    pub(super) flushes: bool,
    /// It can write zeros that are not sent.
    pub(super) writes_zeroes: bool,
}

fn read<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], NbdError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u16(stream: &mut impl Read) -> Result<u16, NbdError> {
    read(stream).map(u16::from_be_bytes)
}

fn read_u32(stream: &mut impl Read) -> Result<u32, NbdError> {
    read(stream).map(u32::from_be_bytes)
}

fn read_u64(stream: &mut impl Read) -> Result<u64, NbdError> {
    read(stream).map(u64::from_be_bytes)
}

/// Reads the server's greeting and answers it. Options follow.
pub(super) fn greet(stream: &mut (impl Read + Write)) -> Result<(), NbdError> {
    if read_u64(stream)? != NBDMAGIC {
        return Err(NbdError::NotNbd);
    }
    match read_u64(stream)? {
        IHAVEOPT => {}
        OLDSTYLE => return Err(NbdError::Oldstyle),
        _ => return Err(NbdError::NotNbd),
    }
    let flags = read_u16(stream)?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(NbdError::NotFixed);
    }
    let own = u32::from(FIXED_NEWSTYLE | flags & NO_ZEROES);
    stream.write_all(&own.to_be_bytes())?;
    Ok(())
}

/// A reply to an option that grants something.
enum Granted {
    Ack,
    Info(Vec<u8>),
}

fn send_option(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), NbdError> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend(IHAVEOPT.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    // Fits: a name and a few numbers.
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes)?;
    Ok(())
}

/// Reads one reply to an option. `refused` chooses the error for a number and a message of the
/// server's.
fn read_reply(
    stream: &mut impl Read,
    option: u32,
    refused: impl FnOnce(u32, String) -> NbdError,
) -> Result<Granted, NbdError> {
    if read_u64(stream)? != REPLY_TO_OPTION {
        return Err(NbdError::Protocol(
            "a reply to an option has a wrong magic number",
        ));
    }
    if read_u32(stream)? != option {
        return Err(NbdError::Protocol("a reply is to another option"));
    }
    let kind = read_u32(stream)?;
    let length = read_u32(stream)?;
    if length > MAX_REPLY {
        return Err(NbdError::Protocol("a reply to an option is too long"));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    match kind {
        REP_ACK if data.is_empty() => Ok(Granted::Ack),
        REP_INFO => Ok(Granted::Info(data)),
        _ if kind & REP_ERROR != 0 => {
            Err(refused(kind, String::from_utf8_lossy(&data).into_owned()))
        }
        _ => Err(NbdError::Protocol(
            "a reply to an option is of an unknown kind",
        )),
    }
}

/// Has the server expect TLS. On success the next bytes are those of TLS, from both sides.
pub(super) fn start_tls(stream: &mut (impl Read + Write)) -> Result<(), NbdError> {
    send_option(stream, OPT_STARTTLS, &[])?;
    let refused = |code, message| match code {
        REP_ERR_UNSUP | REP_ERR_POLICY => NbdError::NoTls(message),
        _ => NbdError::Refused {
            option: OPT_STARTTLS,
            code: code & !REP_ERROR,
            message,
        },
    };
    match read_reply(stream, OPT_STARTTLS, refused)? {
        Granted::Ack => Ok(()),
        Granted::Info(_) => Err(NbdError::Protocol("TLS was answered with information")),
    }
}

/// Chooses an export. On success the transmission phase begins.
pub(super) fn go(stream: &mut (impl Read + Write), name: &str) -> Result<Export, NbdError> {
    debug_assert!(name.len() <= MAX_NAME);
    let mut data = Vec::with_capacity(8 + name.len());
    data.extend((name.len() as u32).to_be_bytes());
    data.extend(name.as_bytes());
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    send_option(stream, OPT_GO, &data)?;

    let mut size_and_flags = None;
    let mut blocks = (DEFAULT_MINIMUM, DEFAULT_MAXIMUM);
    for _ in 0..MAX_REPLIES {
        let refused = |code, message| match code {
            REP_ERR_UNSUP => NbdError::NoGo,
            REP_ERR_TLS_REQD => NbdError::TlsRequired(message),
            REP_ERR_UNKNOWN => NbdError::NoExport {
                name: name.into(),
                message,
            },
            _ => NbdError::Refused {
                option: OPT_GO,
                code: code & !REP_ERROR,
                message,
            },
        };
        match read_reply(stream, OPT_GO, refused)? {
            Granted::Ack => return export(size_and_flags, blocks),
            Granted::Info(data) => match data.split_first_chunk::<2>() {
                Some((kind, rest)) => match (u16::from_be_bytes(*kind), rest.len()) {
                    (INFO_EXPORT, 10) => {
                        let mut rest = rest;
                        size_and_flags = Some((read_u64(&mut rest)?, read_u16(&mut rest)?));
                    }
                    (INFO_BLOCK_SIZE, 12) => {
                        let mut rest = rest;
                        let minimum = read_u32(&mut rest)?;
                        let _preferred = read_u32(&mut rest)?;
                        blocks = (minimum, read_u32(&mut rest)?);
                    }
                    (INFO_EXPORT | INFO_BLOCK_SIZE, _) => {
                        return Err(NbdError::Protocol("information has a wrong length"));
                    }
                    // Was not asked for, and may be sent.
                    _ => {}
                },
                None => return Err(NbdError::Protocol("information has no kind")),
            },
        }
    }
    Err(NbdError::Protocol("too many replies to an option"))
}

/// Validates what a server says about an export.
fn export(size_and_flags: Option<(u64, u16)>, blocks: (u32, u32)) -> Result<Export, NbdError> {
    let Some((size, flags)) = size_and_flags else {
        return Err(NbdError::Protocol("the export has no size"));
    };
    let (minimum, maximum) = blocks;
    if !minimum.is_power_of_two() || minimum > MAX_MINIMUM || maximum < minimum {
        return Err(NbdError::BlockSize { minimum, maximum });
    }
    if flags & FLAG_READ_ONLY != 0 {
        return Err(NbdError::ReadOnly);
    }
    let maximum = maximum.min(DEFAULT_MAXIMUM);
    Ok(Export {
        size,
        minimum,
        maximum: maximum - maximum % minimum,
        flushes: flags & FLAG_SEND_FLUSH != 0,
        writes_zeroes: flags & FLAG_SEND_WRITE_ZEROES != 0,
    })
}
