// SPDX-License-Identifier: GPL-2.0

//! The memory of a caller, pinned for the device.

use super::{
    requests::{
        Ended,
        Rooms,
        MAX_SEGMENTS, //
    },
    Device, //
};
use crate::abstractions::{
    dma::segments::{
        AnyPageSource,
        Extracted,
        Ownership,
        SegmentLimits, //
    },
    fs::iov::UserRange, //
};
use kernel::{
    dma::DataDirection,
    page::PAGE_SIZE,
    prelude::*,
    uaccess::UserPtr, //
};

/// Greatest number of bytes that always fit into [`MAX_SEGMENTS`] segments, wherever they begin.
pub(crate) const MAX_BYTES: usize = (MAX_SEGMENTS - 1) * PAGE_SIZE;

/// Source and destination of a request.
pub(crate) struct Pages<O: Ownership> {
    source: Option<Extracted<'static, O>>,
    destination: Option<Extracted<'static, O>>,
    rooms: Rooms,
}

/// A part of the current task's memory: an address and a number of bytes.
pub(crate) type Range = (u64, usize);

/// Pins `source` and `destination` for `device`, of up to [`MAX_BYTES`] each; at least one byte.
/// Sleeps for any time, because pages may have to be faulted in: the caller must hold nothing that
/// others need, and no access to the hardware.
///
/// `EFAULT` if a range is not memory of the caller that may be read or written as intended, `EINVAL`
/// if it is empty or too long.
pub(crate) fn pin(
    device: &Device,
    source: Option<Range>,
    destination: Option<Range>,
) -> Result<Pages<impl Ownership>> {
    let limits = SegmentLimits::new(MAX_BYTES, MAX_SEGMENTS, device.max_segment_bytes());
    let pin = |range: Option<Range>, direction| {
        range
            .map(|range| pin_range(range, direction, limits))
            .transpose()
    };
    Ok(Pages {
        source: pin(source, DataDirection::ToDevice)?,
        destination: pin(destination, DataDirection::FromDevice)?,
        rooms: Rooms::new()?,
    })
}

fn pin_range(
    (address, length): Range,
    direction: DataDirection,
    limits: SegmentLimits,
) -> Result<Extracted<'static, impl Ownership>> {
    if length == 0 || length > MAX_BYTES {
        return Err(EINVAL);
    }
    let start = UserPtr::from_addr(usize::try_from(address).map_err(|_| EFAULT)?);
    let mut range = UserRange::new(start, length, direction)?;
    let mut iter = range.iter();
    let AnyPageSource::User(mut source) = AnyPageSource::new(&mut iter) else {
        return Err(EFAULT);
    };
    let pages = source.extract(None, length, limits)?;
    // The end of the range may not be memory of the caller.
    if pages.bytes() == length {
        Ok(pages)
    } else {
        Err(EFAULT)
    }
}

impl<O: Ownership> Pages<O> {
    /// Executes a request with these pages; see [`Requests::run`]. Returns the status, and the number
    /// of bytes of the destination that the device says it wrote. Sleeps. `ENODEV` once the driver is
    /// being unbound.
    ///
    /// [`Requests::run`]: super::requests::Requests::run
    pub(crate) fn run<const H: usize, const S: usize>(
        mut self,
        device: &Device,
        header: &[u8; H],
    ) -> Result<([u8; S], usize)> {
        let Ended { result, cleaned } = {
            let hardware = device.hardware()?;
            hardware.run(
                hardware.device(),
                header,
                self.source.take(),
                self.destination.take(),
                &mut self.rooms,
            )
        };
        // Without the hardware, because this sleeps for any time.
        drop(cleaned);
        result
    }
}
