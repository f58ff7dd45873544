// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dumps in the form of `hexdump -C`.

use std::io::{self, Write};

/// Bytes in a line.
const LINE: usize = 16;

/// Writes bytes in lines of an offset, hexadecimal values and characters, a `*` in place of lines
/// equal to the previous one, and the offset of the end.
#[derive(Debug)]
pub struct HexDump<W> {
    output: W,
    /// Offset of the current line.
    offset: u64,
    line: [u8; LINE],
    filled: usize,
    /// The previous full line.
    previous: Option<[u8; LINE]>,
    /// Whether the previous line was omitted.
    folding: bool,
}

impl<W: Write> HexDump<W> {
    /// A dump whose first byte is at this offset.
    pub fn new(output: W, offset: u64) -> Self {
        Self {
            output,
            offset,
            line: [0; LINE],
            filled: 0,
            previous: None,
            folding: false,
        }
    }

    /// Dumps the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = bytes.len().min(LINE - self.filled);
            let (now, later) = bytes.split_at(count);
            self.line[self.filled..self.filled + count].copy_from_slice(now);
            self.filled += count;
            bytes = later;
            if self.filled == LINE {
                self.full_line()?;
            }
        }
        Ok(())
    }

    /// Ends the dump.
    pub fn finish(mut self) -> io::Result<W> {
        let empty = self.filled == 0 && self.previous.is_none();
        if self.filled > 0 {
            self.show()?;
        }
        if !empty {
            writeln!(self.output, "{:08x}", self.offset)?;
        }
        Ok(self.output)
    }

    fn full_line(&mut self) -> io::Result<()> {
        if self.previous != Some(self.line) {
            self.folding = false;
            self.previous = Some(self.line);
            return self.show();
        }
        if !self.folding {
            self.folding = true;
            writeln!(self.output, "*")?;
        }
        self.skip();
        Ok(())
    }

    /// Writes the current line, and begins the next one.
    fn show(&mut self) -> io::Result<()> {
        let bytes = &self.line[..self.filled];
        write!(self.output, "{:08x} ", self.offset)?;
        for index in 0..LINE {
            if index == LINE / 2 {
                write!(self.output, " ")?;
            }
            match bytes.get(index) {
                Some(byte) => write!(self.output, " {byte:02x}")?,
                None => write!(self.output, "   ")?,
            }
        }
        write!(self.output, "  |")?;
        for byte in bytes {
            let shown = match byte {
                b' '..=b'~' => *byte,
                _ => b'.',
            };
            self.output.write_all(&[shown])?;
        }
        writeln!(self.output, "|")?;
        self.skip();
        Ok(())
    }

    fn skip(&mut self) {
        // Only an offset beyond 64 bits wraps.
        self.offset = self.offset.wrapping_add(self.filled as u64);
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dump(chunks: &[&[u8]], offset: u64) -> String {
        let mut dump = HexDump::new(Vec::new(), offset);
        for chunk in chunks {
            dump.push(chunk).unwrap();
        }
        String::from_utf8(dump.finish().unwrap()).unwrap()
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(dump(&[], 0), "");
        assert_eq!(dump(&[b""], 77), "");
    }

    // The expected texts are those of `hexdump -C`.

    #[test]
    fn the_last_line_may_be_short() {
        let expected = "\
00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|
00000010  0a ff 7f 7e 20                                    |...~ |
00000015
";
        assert_eq!(dump(&[b"0123456789abcdef\n\xff\x7f~ "], 0), expected);
        assert_eq!(
            dump(&[b"0", b"123456789abcdef\n", b"\xff\x7f~ "], 0),
            expected
        );
    }

    #[test]
    fn equal_lines_are_folded() {
        let mut data = [0; 16 * 6 + 3];
        data[16 * 4] = b'x';
        let expected = "\
00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
*
00000040  78 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |x...............|
00000050  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
00000060  00 00 00                                          |...|
00000063
";
        assert_eq!(dump(&[&data], 0), expected);
    }

    #[test]
    fn folding_may_last_to_the_end() {
        let expected = "\
00000005  61 61 61 61 61 61 61 61  61 61 61 61 61 61 61 61  |aaaaaaaaaaaaaaaa|
*
00000035
";
        assert_eq!(dump(&[&[b'a'; 48]], 5), expected);
    }

    #[test]
    fn large_offsets_have_more_digits() {
        assert!(dump(&[b"a"], 0x12_3456_789a).starts_with("123456789a  61 "));
    }

    /// Reads a dump back: the bytes, and the offset behind them.
    fn undump(text: &str, start: u64) -> (Vec<u8>, u64) {
        let mut bytes: Vec<u8> = Vec::new();
        let mut end = start;
        let mut folded = false;
        for line in text.lines() {
            if line == "*" {
                folded = true;
                continue;
            }
            let (offset, rest) = line.split_at(8);
            let offset = u64::from_str_radix(offset, 16).unwrap();
            while folded && end < offset {
                let repeated = bytes[bytes.len() - LINE..].to_vec();
                bytes.extend(repeated);
                end += LINE as u64;
            }
            folded = false;
            assert_eq!(end, offset);
            if !rest.is_empty() {
                let hex = rest[..51].split_whitespace();
                let count = hex.clone().count();
                bytes.extend(hex.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
                end += count as u64;
            }
        }
        (bytes, end)
    }

    proptest! {
        #[test]
        fn a_dump_says_all(
            // Few values, so that lines repeat.
            rows in prop::collection::vec((0..3u8, 1..40usize), 0..10),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            cut in any::<prop::sample::Index>(),
            start in 0..100u64,
        ) {
            let mut data: Vec<u8> = rows
                .into_iter()
                .flat_map(|(value, count)| vec![value; count])
                .collect();
            data.extend(tail);
            let (first, second) = data.split_at(cut.index(data.len() + 1));
            let (bytes, end) = undump(&dump(&[first, second], start), start);
            prop_assert_eq!(end, start + data.len() as u64);
            prop_assert_eq!(bytes, data);
        }
    }
}
