// SPDX-License-Identifier: GPL-2.0

//! Directions of a transfer.

use kernel::dma::DataDirection;

/// Whether the device writes.
pub(super) trait Writes {
    fn is_from_device(&self) -> bool;
}

impl Writes for DataDirection {
    #[inline]
    fn is_from_device(&self) -> bool {
        matches!(self, Self::FromDevice)
    }
}
