// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sizes as people write them.

/// Why a text is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number followed by a unit.
    #[error("expected a whole number of bytes or one with a unit: 4096, 64K, 256M, 1G, 2T")]
    Syntax,
    /// More than fits.
    #[error("too large")]
    TooLarge,
}

/// Parses a number of bytes. Units are powers of 1024, in either case, with or
/// without `B` or `iB` behind them.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SizeError::Syntax),
    };
    if number.is_empty() {
        return Err(SizeError::Syntax);
    }
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_bytes_and_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64K", 64 << 10),
            ("64kib", 64 << 10),
            ("256M", 256 << 20),
            ("256 MiB", 256 << 20),
            ("1G", 1 << 30),
            ("1GB", 1 << 30),
            ("2t", 2 << 40),
            (" 7 ", 7),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "M", "-1", "1.5G", "0x10", "1 2", "5X", "1GG", "٣"] {
            assert_eq!(parse(text), Err(SizeError::Syntax), "{text:?}");
        }
    }

    #[test]
    fn overflow_is_refused() {
        assert_eq!(parse("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse("18446744073709551616"), Err(SizeError::TooLarge));
        assert_eq!(parse("16777216T"), Err(SizeError::TooLarge));
    }
}
