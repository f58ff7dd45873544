// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Times as people read them.

/// Writes a number of nanoseconds with three digits in the largest unit that is not longer:
/// `14.3 us`.
pub fn format(nanoseconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let (length, unit) = UNITS
        .into_iter()
        .find(|(length, _)| nanoseconds >= *length)
        .unwrap_or((1, "ns"));
    let number = nanoseconds as f64 / length as f64;
    let decimals = match (length, number) {
        (1, _) => 0,
        (_, ..9.995) => 2,
        (_, ..99.95) => 1,
        _ => 0,
    };
    format!("{number:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        for (nanoseconds, text) in [
            (0, "0 ns"),
            (320, "320 ns"),
            (1_000, "1.00 us"),
            (9_996, "10.0 us"),
            (14_336, "14.3 us"),
            (999_000, "999 us"),
            (1_500_000, "1.50 ms"),
            (68_719_476_736, "68.7 s"),
        ] {
            assert_eq!(format(nanoseconds), text);
        }
    }
}
