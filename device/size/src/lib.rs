// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sizes in bytes as people write them: `4096`, `0x1000`, `64K`, `256 MiB`.
//!
//! [`parse`] reads the arguments of all our programs. There are three ways to write a size:
//! [`format()`] for arguments and names, [`describe`] for exact values, [`round`] for
//! approximate ones.

#![forbid(unsafe_code)]

/// Units, powers of two with the letter that stands for them, the largest first.
const UNITS: [(u32, char); 4] = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];

/// Error of [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text is not a whole number, or not one followed by a unit.
    #[error(
        "expected a whole number of bytes, decimal or 0x..., or one with a unit: 64K, 256M, 1G, 2T"
    )]
    Syntax,
    /// The number of bytes is 2^64 or more.
    #[error("too large")]
    TooLarge,
}

/// Parses a number of bytes: hexadecimal after `0x`, or decimal. Units are powers of 1024,
/// in upper or lower case, with or without `B` or `iB`, and blanks may precede them. A
/// hexadecimal number takes no unit, because `B` is one of its digits.
///
/// # Errors
///
/// The text has another form, a sign or a fraction for example, or the size does not fit
/// into 64 bits.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let (radix, number, shift) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (16, digits, 0),
        None => {
            let end = text
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len());
            let (number, unit) = text.split_at(end);
            (10, number, shift(unit.trim_start())?)
        }
    };
    // `from_str_radix` would accept a sign.
    if number.is_empty() || !number.chars().all(|c| c.is_digit(radix)) {
        return Err(SizeError::Syntax);
    }
    let number = u64::from_str_radix(number, radix).map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

/// The power of two that a unit stands for.
fn shift(unit: &str) -> Result<u32, SizeError> {
    let unit = unit.to_ascii_uppercase();
    if matches!(unit.as_str(), "" | "B") {
        return Ok(0);
    }
    let letter = unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    UNITS
        .iter()
        .find(|(_, known)| letter.chars().eq([*known]))
        .map(|(shift, _)| *shift)
        .ok_or(SizeError::Syntax)
}

/// The largest unit of which `bytes` is a whole number, and that number.
fn whole(bytes: u64) -> Option<(u64, char)> {
    UNITS
        .iter()
        .find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift))
        .map(|(shift, letter)| (bytes >> shift, *letter))
}

/// Writes a size with the largest unit that leaves a whole number: `1536M`. [`parse`] is the
/// reverse.
pub fn format(bytes: u64) -> String {
    match whole(bytes) {
        Some((number, letter)) => format!("{number}{letter}"),
        None => bytes.to_string(),
    }
}

/// Writes the number of bytes, followed by the largest unit that leaves a whole number:
/// `67108864 bytes (64 MiB)`.
pub fn describe(bytes: u64) -> String {
    match whole(bytes) {
        Some((number, letter)) => format!("{bytes} bytes ({number} {letter}iB)"),
        None => format!("{bytes} bytes"),
    }
}

/// Writes a size with one decimal place in the largest unit that is not larger than it:
/// `1.5 KiB`.
pub fn round(bytes: u64) -> String {
    match UNITS.iter().find(|(shift, _)| bytes >> shift != 0) {
        Some((shift, letter)) => format!("{:.1} {letter}iB", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_and_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4097", 4097),
            ("4096B", 4096),
            ("0x1003", 0x1003),
            ("0XfF", 255),
            ("0x1B", 27),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("256M", 256 << 20),
            ("256 MiB", 256 << 20),
            ("1GB", 1 << 30),
            ("2t", 2 << 40),
            (" 7 ", 7),
            ("18446744073709551615", u64::MAX),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", " ", "0x", "x10", "K", "M", "-1", "+1", "0x+1", "0x-1", "1.5G", "1 2", "5X", "1i",
            "1iB", "1GG", "1KBB", "1Ki", "0x1K", "0x 1", "ff", "٣", "1ä", "1 K B",
        ] {
            assert_eq!(parse(text), Err(SizeError::Syntax), "{text:?}");
        }
    }

    #[test]
    fn overflow_is_refused() {
        for text in ["18446744073709551616", "0x10000000000000000", "16777216T"] {
            assert_eq!(parse(text), Err(SizeError::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn exact_sizes_have_the_largest_whole_unit() {
        assert_eq!(format(0), "0");
        assert_eq!(format(4097), "4097");
        assert_eq!(format(1 << 20), "1M");
        assert_eq!(format(3 << 29), "1536M");
        assert_eq!(describe(0), "0 bytes");
        assert_eq!(describe(4097), "4097 bytes");
        assert_eq!(describe(64 << 20), "67108864 bytes (64 MiB)");
        assert_eq!(describe(3 << 29), "1610612736 bytes (1536 MiB)");
    }

    #[test]
    fn approximate_sizes_have_one_decimal_place() {
        assert_eq!(round(0), "0 B");
        assert_eq!(round(1023), "1023 B");
        assert_eq!(round(1536), "1.5 KiB");
        assert_eq!(round(300 << 20), "300.0 MiB");
        assert_eq!(round(3 << 40), "3.0 TiB");
    }

    proptest! {
        #[test]
        fn formatting_is_the_reverse(number: u64, shift in 0u32..64) {
            let bytes = number >> shift << shift;
            prop_assert_eq!(parse(&format(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in "[ 0-9a-zA-Z+.-]{0,24}|[0-9]{1,25} ?[kmgtKMGTxX]?i?[bB]?") {
            if let Ok(bytes) = parse(&text) {
                prop_assert_eq!(parse(&format(bytes)), Ok(bytes));
            }
        }
    }
}
