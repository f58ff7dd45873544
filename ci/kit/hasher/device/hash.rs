// SPDX-License-Identifier: Apache-2.0 OR MIT

//! SHA-256 of a part of a message.

use sha2::block_api::compress256;

use crate::protocol::{BLOCK, Opcode, State};

/// The state after `data`, of which `before` bytes have led to `state`. `None` if there are not
/// whole blocks before the end, or the message is longer than 2^64 bits.
pub fn hash(opcode: Opcode, mut state: State, before: u64, data: &[u8]) -> Option<State> {
    let (blocks, rest) = data.as_chunks::<BLOCK>();
    let bits = before.checked_add(data.len() as u64)?.checked_mul(8)?;
    if !before.is_multiple_of(BLOCK as u64) || opcode == Opcode::Update && !rest.is_empty() {
        return None;
    }
    compress256(&mut state, blocks);
    if opcode == Opcode::Final {
        // A one, zeros, and the number of bits, which end a block (FIPS 180-4, 5.1.1).
        let mut padding = [[0; BLOCK]; 2];
        let end = padding.as_flattened_mut();
        end[..rest.len()].copy_from_slice(rest);
        end[rest.len()] = 0x80;
        let count = if rest.len() + 1 + 8 <= BLOCK { 1 } else { 2 };
        end[count * BLOCK - 8..count * BLOCK].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut state, &padding[..count]);
    }
    Some(state)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::protocol::{INITIAL, digest};

    /// The digest, with `first` bytes in a request of their own.
    fn in_two(message: &[u8], first: usize) -> [u8; 32] {
        let (one, two) = message.split_at(first);
        let state = hash(Opcode::Update, INITIAL, 0, one).unwrap();
        digest(&hash(Opcode::Final, state, first as u64, two).unwrap())
    }

    #[test]
    fn any_message_in_any_parts_has_its_digest() {
        let message: Vec<u8> = (0..300u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
        for length in 0..message.len() {
            let message = &message[..length];
            let expected: [u8; 32] = Sha256::digest(message).into();
            for first in (0..=length).step_by(BLOCK) {
                assert_eq!(
                    in_two(message, first),
                    expected,
                    "{first} of {length} bytes"
                );
            }
        }
    }

    #[test]
    fn impossible_parts_are_refused() {
        let state = INITIAL;
        assert_eq!(hash(Opcode::Update, state, 0, &[0; 63]), None);
        assert_eq!(hash(Opcode::Update, state, 32, &[0; 64]), None);
        assert_eq!(hash(Opcode::Final, state, 1, &[]), None);
        assert_eq!(hash(Opcode::Final, state, 1 << 61, &[]), None);
        assert_eq!(hash(Opcode::Final, state, u64::MAX - 63, &[0; 64]), None);
        assert!(hash(Opcode::Final, state, (1 << 61) - 64, &[0; 63]).is_some());
    }
}
