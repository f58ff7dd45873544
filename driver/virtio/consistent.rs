// SPDX-License-Identifier: GPL-2.0

//! Reading a configuration that the device may change meanwhile (2.5.1).

use kernel::prelude::*;

/// Greatest number of reads of the device configuration before the driver rejects a device that
/// changes it all the time.
const CONFIG_READS: u32 = 100;

/// The result of `read`, repeated if the generation has changed meanwhile; and the generation.
pub(super) fn consistent<T>(
    mut generation: impl FnMut() -> Result<u8>,
    mut read: impl FnMut() -> Result<T>,
) -> Result<(T, u8)> {
    let mut before = generation()?;
    for _ in 0..CONFIG_READS {
        let value = read()?;
        let after = generation()?;
        if after == before {
            return Ok((value, after));
        }
        before = after;
    }
    Err(EAGAIN)
}

#[kernel::macros::kunit_tests(ringbar_consistent)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn configuration_is_read_again_while_it_changes() {
        // The generation changes during the first three reads.
        let (generation, reads) = (Cell::new(7u8), Cell::new(0));
        let value = consistent(
            || Ok(generation.get()),
            || {
                reads.set(reads.get() + 1);
                if reads.get() <= 3 {
                    generation.set(generation.get() + 1);
                }
                Ok((reads.get(), generation.get()))
            },
        );
        assert_eq!(value, Ok(((4, 10), 10)));
    }

    #[test]
    fn configuration_that_always_changes_is_given_up() {
        let generation = Cell::new(0u8);
        let next = || {
            generation.set(generation.get().wrapping_add(1));
            Ok(generation.get())
        };
        assert_eq!(consistent(next, || Ok(())), Err(EAGAIN));
    }
}
