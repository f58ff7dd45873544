// SPDX-License-Identifier: GPL-2.0

//! A read or write call, and the functions that all ways to execute it need.

use crate::{
    abstractions::{
        dma::segments::{
            Extracted,
            InlineSegments,
            Ownership,
            PageSource, //
        },
        fs::kiocb::{
            IoReturn,
            Kiocb, //
        },
        pci::revocable::Guard,
        task::wait::Signals, //
    },
    device::Device,
    hardware::Hardware,
    layout::{
        Opcode,
        RequestHeader, //
    },
    queue::{
        buffers::Limits,
        request::{
            AcquiredSlot,
            Transfer, //
        },
        state::QueueRef, //
    }, //
};
use kernel::prelude::*;

/// The parameters of a read or write call, clamped to the device.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) opcode: Opcode,
    pub(super) flags: u16,
    pub(super) position: u64,
    /// Number of bytes, at least 1.
    pub(super) length: usize,
    pub(super) nowait: bool,
    /// With `nowait`: the call must not become a short transfer.
    pub(super) all_or_nothing: bool,
    /// The caller polls for the completion.
    pub(super) polled: bool,
    /// Signals that end the wait for a slot before anything was submitted.
    pub(super) signals: Signals,
    pub(super) limits: Limits,
}

/// The error with which the preparation of a request failed, and its pages.
pub(super) type Unprepared<'s, O> = (Error, Extracted<'s, O>);

impl Call {
    /// Clamps the call to the device. `None` if there is nothing to transfer, `ENOSPC` for a write
    /// at the end.
    pub(super) fn new(
        device: &Device,
        opcode: Opcode,
        kiocb: &Kiocb<'_>,
        length: usize,
    ) -> Result<Option<Self>> {
        let limits = device.limits()?;
        let position = u64::try_from(kiocb.position())?;
        if length == 0 {
            return Ok(None);
        }
        // CAST: A capacity is never negative.
        let left = (device.capacity() as u64).saturating_sub(position);
        if left == 0 {
            return match opcode {
                Opcode::Write => Err(ENOSPC),
                _ => Ok(None),
            };
        }
        let flags = if matches!(opcode, Opcode::Write) && kiocb.is_dsync() {
            RequestHeader::FUA
        } else {
            0
        };
        Ok(Some(Self {
            opcode,
            flags,
            position,
            length: usize::try_from(left).unwrap_or(usize::MAX).min(length),
            nowait: kiocb.nowait(),
            all_or_nothing: kiocb.all_or_nothing(),
            polled: kiocb.is_polled(),
            signals: kiocb.signals(),
            limits: *limits,
        }))
    }

    /// Extracts the pages for the request that follows after `done` bytes. The caller must hold no
    /// slot, lock or `Guard`, because the call may wait for any time.
    #[inline(always)]
    pub(super) fn extract<'s, O: Ownership>(
        &self,
        pages: &mut PageSource<'_, '_, O>,
        room: Option<&'s mut InlineSegments>,
        done: usize,
    ) -> Result<Extracted<'s, O>> {
        pages.extract(room, self.length - done, self.limits.data)
    }

    /// Prepares `slot` as the request for `pages`, which follow after `done` bytes.
    #[inline(always)]
    pub(super) fn prepare<'a, 's, O: Ownership>(
        &self,
        slot: AcquiredSlot<'a>,
        pages: Extracted<'s, O>,
        done: usize,
    ) -> Result<Transfer<'a, O>, Unprepared<'s, O>> {
        let position = self.position + done as u64;
        slot.prepare_transfer(self.opcode, self.flags, position, pages)
    }

    /// The queue for a call that may wait.
    pub(super) fn queue<'a>(&self, hardware: &'a Guard<'_, Hardware>) -> QueueRef<'a> {
        if self.polled {
            hardware.polled_queue()
        } else {
            hardware.queue_here()
        }
    }

    /// Signals that may end a wait after this number of bytes was submitted: programs do not expect
    /// a short transfer of a device like this.
    pub(super) fn signals_after(&self, submitted: usize) -> Signals {
        if submitted == 0 {
            self.signals
        } else {
            Signals::Fatal
        }
    }

    /// Calls `take` for the queues until one has a free slot, for a call that must not wait. `take`
    /// returns `EAGAIN` if a queue has none.
    #[inline(always)]
    pub(super) fn find<'a, T>(
        &self,
        hardware: &'a Guard<'_, Hardware>,
        mut take: impl FnMut(QueueRef<'a>) -> Result<T>,
    ) -> Result<(QueueRef<'a>, T)> {
        if !self.polled {
            return hardware.find_queue(take);
        }
        let queue = hardware.polled_queue();
        let taken = match take(queue) {
            Err(error) if error == EAGAIN => {
                // No other thread may complete the requests that the device has completed.
                queue.reap();
                take(queue)
            }
            result => result,
        };
        taken.map(|taken| (queue, taken))
    }

    /// Ends a call of which nothing was submitted with `error`. Its iterator is rewound: io_uring
    /// retries from there after `EAGAIN`.
    pub(super) fn refuse<'call, O: Ownership>(
        kiocb: Kiocb<'call>,
        mut pages: PageSource<'_, '_, O>,
        error: Error,
    ) -> IoReturn<'call> {
        pages.rewind();
        kiocb.done(Err(error))
    }
}
