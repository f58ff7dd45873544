// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Data that can be verified without the writer.
//!
//! Each byte depends on the seed and on its offset in the device only. So a range can be verified in
//! blocks of another size than those in which it was written, and data of another place is not
//! taken for right.

/// Number of bytes that one step makes.
const WORD: u64 = 8;

/// A pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Number that tells one pattern from another.
    pub seed: u64,
}

impl Pattern {
    /// The bytes at offsets `8 * index` to `8 * index + 7`: the output `index` of SplitMix64
    /// (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn word(self, index: u64) -> [u8; WORD as usize] {
        let state = self
            .seed
            .wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    }

    /// Fills `bytes`, which are at `offset` in the device.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        let skip = (offset % WORD) as usize;
        let head = ((WORD as usize - skip) % WORD as usize).min(bytes.len());
        let (head, body) = bytes.split_at_mut(head);
        head.copy_from_slice(&self.word(offset / WORD)[skip..][..head.len()]);
        let first = offset.div_ceil(WORD);
        for (index, chunk) in (first..).zip(body.chunks_mut(WORD as usize)) {
            chunk.copy_from_slice(&self.word(index)[..chunk.len()]);
        }
    }
}

/// Differences between expected and found data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Number of bytes that differ.
    pub bytes: u64,
    /// Number of blocks with such bytes.
    pub blocks: u64,
    /// The first one: offset, expected and found byte.
    pub first: Option<(u64, u8, u8)>,
}

impl Differences {
    /// Compares a block, whose first byte is at `offset`.
    pub fn compare(&mut self, offset: u64, expected: &[u8], found: &[u8]) {
        if expected == found {
            return;
        }
        let mut places = (0..).zip(expected.iter().zip(found));
        if self.first.is_none() {
            self.first = places
                .clone()
                .find(|(_, (expected, found))| expected != found)
                .map(|(at, (expected, found))| (offset + at, *expected, *found));
        }
        self.bytes += places.by_ref().filter(|(_, (a, b))| a != b).count() as u64;
        self.blocks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_those_of_splitmix64() {
        // The first outputs of the reference implementation for the state 1234567.
        let pattern = Pattern { seed: 1_234_567 };
        let mut bytes = [0; 24];
        pattern.fill(0, &mut bytes);
        let expected = [
            6_457_827_717_110_365_317_u64,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(bytes[..], expected.map(u64::to_le_bytes).concat()[..]);
    }

    proptest! {
        #[test]
        fn a_byte_depends_on_seed_and_offset_only(
            seed: u64,
            offset in 0..1u64 << 40,
            skip in 0..50usize,
            length in 0..50usize,
        ) {
            let pattern = Pattern { seed };
            let mut all = vec![0; skip + length];
            pattern.fill(offset, &mut all);
            let mut part = vec![0; length];
            pattern.fill(offset + skip as u64, &mut part);
            prop_assert_eq!(&all[skip..], &part[..]);
        }
    }

    #[test]
    fn the_end_of_offsets_is_no_problem() {
        Pattern { seed: 1 }.fill(u64::MAX - 20, &mut [0; 20]);
    }

    #[test]
    fn other_places_and_seeds_have_other_data() {
        let data = |seed, offset| {
            let mut bytes = [0; 64];
            Pattern { seed }.fill(offset, &mut bytes);
            bytes
        };
        assert_ne!(data(1, 0), data(2, 0));
        assert_ne!(data(1, 0), data(1, 64));
    }

    #[test]
    fn differences_are_counted_and_the_first_is_kept() {
        let mut differences = Differences::default();
        differences.compare(0, b"same", b"same");
        assert_eq!(differences, Differences::default());
        differences.compare(100, b"abcd", b"aBcD");
        differences.compare(200, b"abcd", b"Xbcd");
        assert_eq!(
            differences,
            Differences {
                bytes: 3,
                blocks: 2,
                first: Some((101, b'b', b'B'))
            }
        );
    }
}
