// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Test data whose position can be recognised.
//!
//! Every seed gives different bytes, and no sequence of eight bytes occurs twice in the
//! data of a seed, so that misplaced bytes are found. Taking a slice costs nothing: all
//! data comes from one block of random bytes, at a position that the seed determines.

use std::sync::LazyLock;

/// Maximum length of the data of a seed.
pub const MAX_LENGTH: usize = 8 << 20;

/// Number of possible positions.
const STARTS: usize = 8 << 20;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    (0..(MAX_LENGTH + STARTS) / 8)
        .flat_map(|_| next(&mut state).to_le_bytes())
        .collect()
});

/// The first `length` bytes of the data of a seed.
pub fn bytes(seed: u64, length: usize) -> &'static [u8] {
    assert!(length <= MAX_LENGTH, "{length} bytes of test data");
    let mut state = seed;
    let start = (next(&mut state) % STARTS as u64) as usize;
    &BLOCK[start..start + length]
}

/// Next number of a splitmix64 generator, which is enough for test data.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers that are the same in every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        next(&mut self.0) % bound
    }
}

/// Describes the first difference between two byte sequences of equal length.
pub fn difference(found: &[u8], expected: &[u8]) -> Option<String> {
    if found == expected {
        return None;
    }
    if found.len() != expected.len() {
        return Some(format!(
            "{} bytes instead of {}",
            found.len(),
            expected.len()
        ));
    }
    let differs = |i: &usize| found[*i] != expected[*i];
    let count = (0..found.len()).filter(differs).count();
    let first = (0..found.len()).find(differs)?;
    let end = found.len().min(first + 8);
    Some(format!(
        "{count} of {} bytes differ, the first is number {first}: {:02x?} instead of {:02x?}",
        found.len(),
        &found[first..end],
        &expected[first..end]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_give_different_and_repeatable_bytes() {
        assert_eq!(bytes(1, 64), bytes(1, 64));
        assert_eq!(bytes(1, 32), &bytes(1, 64)[..32]);
        for seed in 2..200 {
            assert_ne!(bytes(1, 16), bytes(seed, 16));
        }
    }

    #[test]
    fn the_largest_transfer_has_data() {
        for seed in 0..64 {
            assert_eq!(bytes(seed, MAX_LENGTH).len(), MAX_LENGTH);
        }
    }

    #[test]
    fn differences_are_counted_and_placed() {
        assert_eq!(difference(b"abcd", b"abcd"), None);
        let text = difference(b"abXdY", b"abcde").unwrap();
        assert!(
            text.starts_with("2 of 5 bytes differ, the first is number 2"),
            "{text}"
        );
        assert!(
            difference(b"a", b"ab")
                .unwrap()
                .contains("1 bytes instead of 2")
        );
    }
}
