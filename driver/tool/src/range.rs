// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A range of bytes, and the pages that contain it.

/// A range of bytes in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Offset of the first byte.
    pub start: u64,
    /// Number of bytes; `start + length` does not overflow.
    pub length: u64,
}

/// Reason why a range is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The range begins beyond the end of the region.
    #[error("offset {offset:#x} is beyond the end at {size:#x} ({size} bytes)")]
    Offset {
        /// Start of the range.
        offset: u64,
        /// Size of the region in bytes.
        size: u64,
    },
    /// The range ends beyond the end of the region.
    #[error(
        "{length:#x} bytes at {offset:#x} reach beyond the end at {size:#x} ({size} bytes); from this offset on there are {} bytes",
        size - offset
    )]
    Length {
        /// Start of the range.
        offset: u64,
        /// Length of the range in bytes.
        length: u64,
        /// Size of the region in bytes, at least `offset`.
        size: u64,
    },
    /// The end of the range exceeds 64 bits.
    #[error("{length:#x} bytes at {offset:#x} reach beyond what offsets can name")]
    Overflow {
        /// Start of the range.
        offset: u64,
        /// Length of the range in bytes.
        length: u64,
    },
    /// Neither the range nor the file has an end.
    #[error("the end of the file is not known; say how much with --length")]
    Endless,
}

impl Range {
    /// The range of `length` bytes from `offset`, by default up to the end. `size` is the size of
    /// the region, if it is known.
    pub fn new(offset: u64, length: Option<u64>, size: Option<u64>) -> Result<Self, RangeError> {
        let length = match (length, size) {
            (_, Some(size)) if offset > size => return Err(RangeError::Offset { offset, size }),
            (Some(length), Some(size)) if length > size - offset => {
                return Err(RangeError::Length {
                    offset,
                    length,
                    size,
                });
            }
            (Some(length), _) => length,
            (None, Some(size)) => size - offset,
            (None, None) => return Err(RangeError::Endless),
        };
        if offset.checked_add(length).is_none() {
            return Err(RangeError::Overflow { offset, length });
        }
        Ok(Self {
            start: offset,
            length,
        })
    }
}

/// The whole pages that contain a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first page, a multiple of the page size.
    pub start: u64,
    /// Number of bytes from `start` to the end of the range. The kernel also maps the rest of the
    /// last page.
    pub length: usize,
    /// Number of bytes before the range in the first page.
    pub skip: usize,
}

impl Span {
    /// The pages of `page_size` bytes, a power of two, that contain `range`. `None` if they
    /// exceed the address space.
    pub fn new(range: Range, page_size: usize) -> Option<Self> {
        let skip = range.start & (page_size as u64 - 1);
        let length = usize::try_from(range.length.checked_add(skip)?).ok()?;
        // The kernel rounds up to whole pages.
        length.checked_next_multiple_of(page_size)?;
        Some(Self {
            start: range.start - skip,
            length,
            skip: usize::try_from(skip).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_rest_is_the_default() {
        let rest = |offset| Range::new(offset, None, Some(100));
        let range = |start, length| Ok(Range { start, length });
        assert_eq!(rest(0), range(0, 100));
        assert_eq!(rest(99), range(99, 1));
        assert_eq!(rest(100), range(100, 0));
        assert_eq!(
            rest(101),
            Err(RangeError::Offset {
                offset: 101,
                size: 100
            })
        );
    }

    #[test]
    fn without_an_end_a_length_is_needed() {
        assert_eq!(Range::new(5, None, None), Err(RangeError::Endless));
        assert_eq!(
            Range::new(5, Some(7), None),
            Ok(Range {
                start: 5,
                length: 7
            })
        );
        assert_eq!(
            Range::new(u64::MAX, Some(1), None),
            Err(RangeError::Overflow {
                offset: u64::MAX,
                length: 1
            })
        );
    }

    #[test]
    fn messages_say_where_the_end_is() {
        let error = Range::new(4, Some(100), Some(16)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "0x64 bytes at 0x4 reach beyond the end at 0x10 (16 bytes); from this offset on there are 12 bytes"
        );
    }

    #[test]
    fn more_than_the_address_space_has_no_span() {
        let span = |start, length| Span::new(Range { start, length }, 4096);
        assert_eq!(span(0, u64::MAX), None);
        assert_eq!(span(1, u64::MAX - 1), None);
        assert!(span(u64::MAX - 1, 1).is_some());
    }

    /// Numbers around the places where something changes.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..100u64, (u64::MAX - 100)..=u64::MAX, any::<u64>()]
    }

    proptest! {
        /// With numbers that cannot overflow, a range is what it says.
        #[test]
        fn ranges_lie_within_the_size(
            offset in number(),
            length in prop::option::of(number()),
            size in prop::option::of(number()),
        ) {
            let (o, s) = (u128::from(offset), size.map(u128::from));
            let end = match (length, s) {
                (Some(length), _) => Some(o + u128::from(length)),
                (None, s) => s,
            };
            let limit = s.unwrap_or(u128::from(u64::MAX));
            let expected = end.filter(|end| o <= *end && *end <= limit);
            match (Range::new(offset, length, size), expected) {
                (Ok(range), Some(end)) => {
                    prop_assert_eq!(range.start, offset);
                    prop_assert_eq!(o + u128::from(range.length), end);
                }
                (Err(_), None) => {}
                (found, expected) => prop_assert!(false, "{:?} instead of end {:?}", found, expected),
            }
        }

        /// The pages of a span are those that bytes of the range are on.
        #[test]
        fn spans_are_the_pages_of_the_bytes(
            start in 0..300u64,
            length in 1..200u64,
            shift in 0..7u32,
        ) {
            let page_size = 1u64 << shift;
            let touched: BTreeSet<u64> =
                (start..start + length).map(|byte| byte / page_size).collect();
            let span = Span::new(Range { start, length }, page_size as usize).unwrap();
            prop_assert_eq!(span.start % page_size, 0);
            prop_assert_eq!(span.start + span.skip as u64, start);
            prop_assert_eq!(span.length as u64, span.skip as u64 + length);
            let first = span.start / page_size;
            let count = (span.length as u64).div_ceil(page_size);
            let mapped: BTreeSet<u64> = (first..first + count).collect();
            prop_assert_eq!(mapped, touched);
        }
    }
}
