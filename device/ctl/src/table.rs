// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Aligned columns.

use std::fmt;

/// Space between two columns.
const GAP: usize = 2;

/// A table of text. Each row has as many cells as the header.
#[derive(Debug)]
pub struct Table<const N: usize> {
    /// The headings, which say the units, each with the side to which its column is aligned.
    header: [(Align, &'static str); N],
    rows: Vec<[String; N]>,
}

/// The side to which a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub const fn new(header: [(Align, &'static str); N]) -> Self {
        Self {
            header,
            rows: Vec::new(),
        }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.header.map(|(_, heading)| heading.to_owned());
        let rows = || std::iter::once(&header).chain(&self.rows);
        let widths: [usize; N] = std::array::from_fn(|column| {
            let lengths = rows().map(|row| row[column].chars().count());
            lengths.max().unwrap_or(0)
        });
        for row in rows() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &match self.header[column].0 {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                };
                line += &" ".repeat(GAP);
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new([(Align::Left, "NAME"), (Align::Right, "BYTES")]);
        table.row(["a".into(), "1".into()]);
        table.row(["longer".into(), "1234567".into()]);
        let expected = "\
NAME      BYTES
a             1
longer  1234567
";
        assert_eq!(table.to_string(), expected);
    }
}
