// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory of MSI-X: its table and its pending bits (PCI Express 6.0, 7.7.2).
//!
//! A VFIO client emulates the table and enables vectors with messages of its own, so the function
//! only stores the table. No bit is ever pending.

use crate::layout::copy_overlap;

/// Bytes of an entry, and the offset of its vector control.
const ENTRY: usize = 16;
const VECTOR_CONTROL: usize = 12;

/// The mask bit of the vector control.
const MASKED: u8 = 1;

/// Lowest offset of the pending bits, as in QEMU.
const PENDING_OFFSET: usize = 0x800;

/// Smallest BAR, in bytes: a page.
const MIN_BAR: u64 = 0x1000;

/// The offset of the pending bits in the BAR.
pub(crate) fn pending_offset(vectors: u16) -> u32 {
    // CAST: At most 0x8000.
    (usize::from(vectors) * ENTRY).max(PENDING_OFFSET) as u32
}

/// The size of the BAR in bytes.
pub(crate) fn bar_bytes(vectors: u16) -> u64 {
    let pending = u64::from(vectors).div_ceil(64) * 8;
    (u64::from(pending_offset(vectors)) + pending)
        .next_power_of_two()
        .max(MIN_BAR)
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    vectors: u16,
    bytes: Vec<u8>,
}

impl Table {
    pub(crate) fn new(vectors: u16) -> Self {
        let mut table = Self {
            vectors,
            bytes: vec![0; usize::from(vectors) * ENTRY],
        };
        table.reset();
        table
    }

    /// The size of the BAR in bytes.
    pub(crate) fn bar_bytes(&self) -> u64 {
        bar_bytes(self.vectors)
    }

    /// Clears and masks all entries.
    pub(crate) fn reset(&mut self) {
        self.bytes.fill(0);
        for entry in self.bytes.chunks_exact_mut(ENTRY) {
            entry[VECTOR_CONTROL] = MASKED;
        }
    }

    /// Reads at `offset` of the BAR.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        copy_overlap(offset, data, 0, &self.bytes);
    }

    /// Writes at `offset` of the BAR: the table takes aligned words of 4 and 8 bytes.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        // The table is a whole number of words, so that a word lies within or outside.
        let Ok(at) = usize::try_from(offset) else {
            return;
        };
        let word = at.checked_add(data.len());
        if let Some(word) = word.and_then(|end| self.bytes.get_mut(at..end)) {
            for (i, (byte, value)) in word.iter_mut().zip(data).enumerate() {
                *byte = value & writable((at + i) % ENTRY);
            }
        }
    }
}

/// The writable bits of a byte of an entry: the message address is one of 4 bytes, and the
/// vector control has only the mask.
fn writable(at: usize) -> u8 {
    match at {
        0 => 0xfc,
        VECTOR_CONTROL => MASKED,
        1..VECTOR_CONTROL => 0xff,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_has_place_for_table_and_pending_bits() {
        for (vectors, pending, bytes) in [
            (1, 0x800, 0x1000),
            (128, 0x800, 0x1000),
            (129, 0x810, 0x1000),
            (255, 0xff0, 0x2000),
            (2048, 0x8000, 0x10000),
        ] {
            assert_eq!(pending_offset(vectors), pending, "{vectors} vectors");
            assert_eq!(bar_bytes(vectors), bytes, "{vectors} vectors");
        }
    }

    #[test]
    fn entries_are_masked_until_written() {
        let mut table = Table::new(2);
        let mut entry = [0; 16];
        table.read(16, &mut entry);
        assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        table.write(16, &0xfee0_1003_u32.to_le_bytes());
        table.write(24, &0xffff_fffe_0000_4021_u64.to_le_bytes());
        table.read(16, &mut entry);
        assert_eq!(
            entry,
            [
                0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x21, 0x40, 0, 0, 0, 0, 0, 0
            ]
        );
        table.reset();
        table.read(16, &mut entry);
        assert_eq!(entry[..13], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn other_writes_are_ignored() {
        let mut table = Table::new(1);
        table.write(2, &[0xff; 4]);
        table.write(0, &[0xff; 2]);
        table.write(4, &[0xff; 8]);
        table.write(0, &[0xff; 16]);
        table.write(16, &[0xff; 4]);
        table.write(0x800, &[0xff; 8]);
        table.write(u64::MAX - 7, &[0xff; 8]);
        let mut bar = vec![0xff; 0x1000];
        table.read(0, &mut bar);
        assert_eq!(bar.iter().map(|&byte| u32::from(byte)).sum::<u32>(), 1);
    }
}
