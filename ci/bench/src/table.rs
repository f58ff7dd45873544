// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tables as text.

/// Aligns rows of cells: the first `left` columns, which hold names, to the left, the
/// others, which hold numbers, to the right.
pub fn align(rows: &[Vec<String>], left: usize) -> String {
    let mut widths = Vec::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(i) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += &if i < left {
                format!("{cell:<width$}  ")
            } else {
                format!("{cell:>width$}  ")
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_the_left_and_numbers_to_the_right() {
        let rows = [["job", "IOPS"], ["a-long-name", "7"], ["x", "12345"]]
            .map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            align(&rows, 1),
            "job           IOPS\na-long-name      7\nx            12345\n"
        );
        assert_eq!(align(&[], 1), "");
    }
}
