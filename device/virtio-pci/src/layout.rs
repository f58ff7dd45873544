// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The layout of the BARs: the one of QEMU's `virtio-pci`.

/// Index of the BAR of the MSI-X table; absent without MSI-X.
pub const MSIX_BAR: u8 = 1;

/// Index of the BAR of the VIRTIO registers.
pub const REGISTER_BAR: u8 = 2;

/// Index of the BAR of the shared memory region; absent without a region.
pub const SHARED_BAR: u8 = 4;

/// Bytes of the register BAR.
pub(crate) const REGISTER_BAR_BYTES: u64 = 0x4000;

/// A part of the register BAR.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// First byte.
    pub(crate) offset: u64,
    /// Number of bytes.
    pub(crate) bytes: u64,
}

impl Part {
    /// The part with other bytes in number.
    pub(crate) const fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// Whether `length` bytes at `offset` of the BAR have a byte in common with the part.
    pub(crate) fn overlaps(self, offset: u64, length: usize) -> bool {
        offset < self.offset + self.bytes && self.offset < offset.saturating_add(length as u64)
    }

    /// Where an access begins in the part, if all of it lies within.
    pub(crate) fn within(self, offset: u64, length: usize) -> Option<u64> {
        let at = offset.checked_sub(self.offset)?;
        (at.checked_add(length as u64)? <= self.bytes).then_some(at)
    }
}

/// Common configuration (VIRTIO 1.3, 4.1.4.3), up to `queue_device`. The registers behind it
/// belong to features that the function does not implement.
pub(crate) const COMMON: Part = Part {
    offset: 0,
    bytes: 56,
};

/// Interrupt status (4.1.4.5).
pub(crate) const INTERRUPT_STATUS: Part = Part {
    offset: 0x1000,
    bytes: 1,
};

/// Space for the device configuration (4.1.4.6).
pub(crate) const DEVICE: Part = Part {
    offset: 0x2000,
    bytes: 0x1000,
};

/// Space for notifications (4.1.4.4).
pub(crate) const NOTIFY: Part = Part {
    offset: 0x3000,
    bytes: 0x1000,
};

/// Bytes between the notification addresses of two queues.
pub(crate) const NOTIFY_MULTIPLIER: u32 = 4;

/// Copies the bytes that an access at `offset` of a space and the bytes `source` at `at` of it
/// have in common.
pub(crate) fn copy_overlap(offset: u64, data: &mut [u8], at: u64, source: &[u8]) {
    let start = offset.max(at);
    let end = offset
        .saturating_add(data.len() as u64)
        .min(at.saturating_add(source.len() as u64));
    if start < end {
        // CAST: The differences are at most the lengths of the slices.
        let (to, from, length) = (
            (start - offset) as usize,
            (start - at) as usize,
            (end - start) as usize,
        );
        data[to..to + length].copy_from_slice(&source[from..from + length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_copied() {
        for (offset, expected) in [
            (6, [0, 0, 0]),
            (7, [0, 0, 0]),
            (8, [0, 0, 1]),
            (10, [1, 2, 3]),
            (13, [4, 0, 0]),
            (14, [0, 0, 0]),
            (u64::MAX, [0, 0, 0]),
        ] {
            let mut data = [0; 3];
            copy_overlap(offset, &mut data, 10, &[1, 2, 3, 4]);
            assert_eq!(data, expected, "offset {offset}");
        }
    }

    #[test]
    fn access_lies_within_overlaps_or_neither() {
        assert_eq!(DEVICE.within(0x2000, 0x1000), Some(0));
        assert_eq!(DEVICE.within(0x2ffe, 2), Some(0xffe));
        assert_eq!(DEVICE.within(0x2ffe, 3), None);
        assert_eq!(DEVICE.within(0x1fff, 2), None);
        assert_eq!(DEVICE.within(u64::MAX, 1), None);
        assert!(DEVICE.overlaps(0x1fff, 2));
        assert!(DEVICE.overlaps(0x2fff, 2));
        assert!(!DEVICE.overlaps(0x1ffe, 2));
        assert!(!DEVICE.overlaps(0x3000, 2));
    }
}
