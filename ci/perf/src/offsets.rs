// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which block is next.

use std::num::NonZeroU64;

/// Seed where none is chosen.
pub const SEED: NonZeroU64 = NonZeroU64::new(0x9e37_79b9_7f4a_7c15).unwrap();

/// Endless offsets of blocks, the same for each run.
#[derive(Clone, Debug)]
pub struct Offsets {
    block: u64,
    /// At least 1.
    blocks: u64,
    order: Order,
}

#[derive(Clone, Debug)]
enum Order {
    Sequential { next: u64 },
    Random { state: u64 },
}

impl Offsets {
    /// Blocks of `block` bytes within `size` bytes; `None` if not even one fits.
    pub fn new(block: u64, size: u64, random: bool) -> Option<Self> {
        match random {
            true => Self::random(block, size, SEED),
            false => Self::with_order(block, size, Order::Sequential { next: 0 }),
        }
    }

    /// Blocks in an order that depends on `seed`.
    pub fn random(block: u64, size: u64, seed: NonZeroU64) -> Option<Self> {
        let state = seed.get();
        Self::with_order(block, size, Order::Random { state })
    }

    fn with_order(block: u64, size: u64, order: Order) -> Option<Self> {
        let blocks = size.checked_div(block).filter(|blocks| *blocks != 0)?;
        Some(Self {
            block,
            blocks,
            order,
        })
    }

    /// Offset of the next block in bytes.
    #[inline]
    pub fn next_offset(&mut self) -> u64 {
        let block = match &mut self.order {
            Order::Sequential { next } => {
                let block = *next;
                *next = if block + 1 == self.blocks {
                    0
                } else {
                    block + 1
                };
                block
            }
            // xorshift64 with a multiplication for the upper bits, which are scaled: some ten
            // instructions.
            Order::Random { state } => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                let upper = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
                ((u128::from(upper) * u128::from(self.blocks)) >> 64) as u64
            }
        };
        block * self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn sequential_offsets_begin_again_at_the_end() {
        let mut offsets = Offsets::new(512, 1536 + 511, false).unwrap();
        let first: Vec<_> = (0..5).map(|_| offsets.next_offset()).collect();
        assert_eq!(first, [0, 512, 1024, 0, 512]);
        assert!(Offsets::new(512, 511, false).is_none());
        assert!(Offsets::new(0, 511, true).is_none());
    }

    #[test]
    fn seeds_have_different_blocks() {
        let blocks = |seed| {
            let mut offsets = Offsets::random(1, u64::MAX, NonZeroU64::new(seed).unwrap()).unwrap();
            (0..1000)
                .map(|_| offsets.next_offset())
                .collect::<BTreeSet<_>>()
        };
        assert!(blocks(1).is_disjoint(&blocks(2)));
        assert_eq!(blocks(1), blocks(1));
    }

    #[test]
    fn random_offsets_reach_all_blocks_equally_often() {
        let mut offsets = Offsets::new(4096, 64 * 4096, true).unwrap();
        let mut counts = [0u32; 64];
        for _ in 0..64_000 {
            counts[(offsets.next_offset() / 4096) as usize] += 1;
        }
        // Six standard deviations.
        assert!(
            counts.iter().all(|count| (810..1190).contains(count)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn blocks_are_within_the_size(block in 1u64..1 << 30, size: u64, random: bool) {
            let Some(mut offsets) = Offsets::new(block, size, random) else {
                prop_assert!(size < block);
                return Ok(());
            };
            for _ in 0..100 {
                let offset = offsets.next_offset();
                prop_assert!(offset % block == 0 && offset <= size - block);
            }
        }
    }
}
