// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sizes as people write them: `4096`, `0x1000`, `64K`, `256M`, `2G`.

/// Why a text is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number, or not one followed by a unit.
    #[error("expected a whole number of bytes, decimal or 0x..., or one with a unit: 64K, 256M")]
    Syntax,
    /// More than fits.
    #[error("too large")]
    TooLarge,
}

/// Parses a number of bytes: hexadecimal behind `0x`, or decimal. Units are powers
/// of 1024, in either case, with or without `B` or `iB` behind them; a hexadecimal
/// number has none, since `B` is one of its digits.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let (radix, number, shift) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (16, digits, 0),
        None => {
            let end = text
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len());
            let (number, unit) = text.split_at(end);
            let shift = match unit.to_ascii_lowercase().as_str() {
                "" | "b" => 0,
                "k" | "kb" | "kib" => 10,
                "m" | "mb" | "mib" => 20,
                "g" | "gb" | "gib" => 30,
                "t" | "tb" | "tib" => 40,
                _ => return Err(SizeError::Syntax),
            };
            (10, number, shift)
        }
    };
    // `from_str_radix` would accept a sign.
    if number.is_empty() || !number.chars().all(|c| c.is_digit(radix)) {
        return Err(SizeError::Syntax);
    }
    let number = u64::from_str_radix(number, radix).map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

/// Writes a number of bytes, followed by the largest unit that leaves a whole number.
pub fn describe(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units
        .iter()
        .find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift))
    {
        Some((shift, unit)) => format!("{bytes} bytes ({} {unit})", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4097", 4097),
            ("0x1003", 0x1003),
            ("0XfF", 255),
            ("0x1B", 27),
            ("0", 0),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("256M", 256 << 20),
            ("1GB", 1 << 30),
            ("2t", 2 << 40),
            ("18446744073709551615", u64::MAX),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", "0x", "x10", "K", "-1", "+1", "0x+1", "0x-1", "1.5G", "1 G", "5X", "0x1K", "ff",
            "٣", " 1",
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
    fn descriptions_name_the_largest_whole_unit() {
        assert_eq!(describe(0), "0 bytes");
        assert_eq!(describe(4097), "4097 bytes");
        assert_eq!(describe(64 << 20), "67108864 bytes (64 MiB)");
        assert_eq!(describe(3 << 29), "1610612736 bytes (1536 MiB)");
    }
}
