// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sizes with a suffix: `4096`, `64K`, `256M`, `2G`.

/// Error of parsing a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no size: a whole number of bytes, or one with a suffix K, M, G or T (powers of 1024)"
)]
pub struct SizeError(String);

/// Parses a size in bytes.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let error = || SizeError(text.to_owned());
    let shift = match text.bytes().last().ok_or_else(error)? {
        b'K' | b'k' => 10,
        b'M' | b'm' => 20,
        b'G' | b'g' => 30,
        b'T' | b't' => 40,
        b'0'..=b'9' => 0,
        _ => return Err(error()),
    };
    let digits = &text[..text.len() - usize::from(shift != 0)];
    // `u64::from_str` would accept a sign.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error());
    }
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(1 << shift).ok_or_else(error)
}

/// Writes a size with the largest suffix that leaves a whole number.
pub fn format(bytes: u64) -> String {
    for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("4097"), Ok(4097));
        assert_eq!(parse("64k"), Ok(65536));
        assert_eq!(parse("256M"), Ok(256 << 20));
        assert_eq!(parse("2G"), Ok(2 << 30));
        assert_eq!(parse("1T"), Ok(1 << 40));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5G",
            "1 G",
            "1GiB",
            "0x10",
            "ä",
            "16777216T",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn formatting_is_the_reverse() {
        for bytes in [0, 1, 512, 4096, 4097, 65536, 1 << 20, 3 << 29, u64::MAX] {
            assert_eq!(parse(&format(bytes)), Ok(bytes));
        }
        assert_eq!(format(1 << 20), "1M");
        assert_eq!(format(3 << 29), "1536M");
    }
}
