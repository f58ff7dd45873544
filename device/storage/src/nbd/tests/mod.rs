// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The client on servers that tests make up. `tests/nbd.rs` has a real one.

mod handshake;
mod lies;
mod session;
mod uri;

use super::wire::{IHAVEOPT, INFO_BLOCK_SIZE, INFO_EXPORT, NBDMAGIC, OPT_GO, REPLY_TO_OPTION};
use super::wire::{REP_ACK, REP_INFO};

/// What a server sends first.
fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = NBDMAGIC.to_be_bytes().to_vec();
    bytes.extend(IHAVEOPT.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes
}

/// A reply to an option.
fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = REPLY_TO_OPTION.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

/// Information on an export.
fn info_export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = INFO_EXPORT.to_be_bytes().to_vec();
    data.extend(size.to_be_bytes());
    data.extend(flags.to_be_bytes());
    reply(OPT_GO, REP_INFO, &data)
}

/// Information on its blocks.
fn info_blocks(sizes: [u32; 3]) -> Vec<u8> {
    let mut data = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    data.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    reply(OPT_GO, REP_INFO, &data)
}

fn ack() -> Vec<u8> {
    reply(OPT_GO, REP_ACK, &[])
}
