// SPDX-License-Identifier: GPL-2.0

//! Reads and writes: from a call to requests and back.
//!
//! A call first extracts its pages, then acquires a slot, then submits: another program may have to
//! provide a page, which takes any time and may need this very device. The call holds nothing that
//! others need while it waits for that.
//!
//! Most calls are one request. Then the driver allocates nothing: the slot has the completion. A
//! call that does not fit into one request (too many segments or bytes) becomes a [`SplitTransfer`]
//! of several, see [`super::split`].
//!
//! [`SplitTransfer`]: crate::queue::split::SplitTransfer

use super::call::{
    Call,
    Unprepared, //
};
use crate::{
    abstractions::{
        dma::segments::{
            AnyPageSource,
            CleanedPages,
            Extracted,
            InlineSegments,
            Ownership,
            PageSource, //
        },
        fs::{
            iov::IovIter,
            kiocb::{
                IoReturn,
                Kiocb, //
            }, //
        },
        pci::revocable::Guard, //
    },
    device::Device,
    hardware::Hardware,
    layout::Opcode,
    queue::{
        poll_policy::WaitStrategy,
        request::Transfer,
        state::QueueRef, //
    }, //
};
use kernel::{
    prelude::*,
    sync::ArcBorrow, //
};

/// Executes a read or write call.
#[inline(always)]
pub(super) fn transfer<'call>(
    device: ArcBorrow<'_, Device>,
    opcode: Opcode,
    kiocb: Kiocb<'call>,
    iter: &mut IovIter<'_>,
) -> IoReturn<'call> {
    match Call::new(&device, opcode, &kiocb, iter.len()) {
        Ok(Some(call)) => match AnyPageSource::new(iter) {
            AnyPageSource::User(pages) => call.execute(device, kiocb, pages),
            AnyPageSource::Kernel(pages) => call.execute(device, kiocb, pages),
        },
        Ok(None) => kiocb.done(Ok(0)),
        Err(error) => kiocb.done(Err(error)),
    }
}

/// The return value of a call of one request, and pages that are to be dropped once the hardware
/// was released.
type Submitted<'call> = (IoReturn<'call>, Option<CleanedPages>);

impl Call {
    fn execute<'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        kiocb: Kiocb<'call>,
        mut pages: PageSource<'_, '_, O>,
    ) -> IoReturn<'call> {
        // The call does not fit into a queue, and will be retried where it may wait: so no page is
        // accessed.
        let most = self.limits.data.total();
        if self.length > most
            && self.all_or_nothing
            && self.length.div_ceil(most) > self.limits.requests
        {
            return kiocb.done(Err(EAGAIN));
        }
        let mut room = InlineSegments::new();
        let first = match self.extract(&mut pages, Some(&mut room), 0) {
            Ok(first) => first,
            Err(error) => return kiocb.done(Err(error)),
        };
        if first.bytes() == self.length {
            self.single(device, kiocb, pages, first)
        } else if self.nowait {
            self.submit_split_nowait(device, kiocb, pages, first)
        } else {
            self.submit_split(device, kiocb, pages, first)
        }
    }

    /// Executes a call of one request, or a split transfer if the DMA layer has no room for that.
    fn single<'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        kiocb: Kiocb<'call>,
        pages: PageSource<'_, '_, O>,
        first: Extracted<'_, O>,
    ) -> IoReturn<'call> {
        let hardware = match device.hardware() {
            Ok(hardware) => hardware,
            Err(error) => {
                drop(first);
                return Self::refuse(kiocb, pages, error);
            }
        };
        match self.try_single(device, &hardware, kiocb, first) {
            Ok((answer, cleaned)) => {
                // Dropping the pages may wait for a program that needs the device, or waits for its
                // unbind.
                drop(hardware);
                drop(cleaned);
                answer
            }
            // A slot was free, so the DMA layer had no room.
            Err((kiocb, (error, first))) if error == EAGAIN && !self.nowait => {
                drop(hardware);
                self.submit_split(device, kiocb, pages, first)
            }
            Err((kiocb, (error, first))) => {
                drop(first);
                Self::refuse(kiocb, pages, error)
            }
        }
    }

    /// As [`Self::single`]. Also returns pages that are to be dropped once the hardware was
    /// released. An error returns all values: `EAGAIN` if the DMA layer has no room, or no slot is
    /// free for a call that must not wait.
    fn try_single<'call, 's, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        hardware: &Guard<'_, Hardware>,
        kiocb: Kiocb<'call>,
        first: Extracted<'s, O>,
    ) -> Result<Submitted<'call>, (Kiocb<'call>, Unprepared<'s, O>)> {
        let acquired = if self.nowait {
            self.find(hardware, QueueRef::try_acquire)
        } else {
            let queue = self.queue(hardware);
            queue.acquire(self.signals).map(|slot| (queue, slot))
        };
        let (queue, slot) = match acquired {
            Ok(acquired) => acquired,
            Err(error) => return Err((kiocb, (error, first))),
        };
        match self.prepare(slot, first, 0) {
            Ok(transfer) => Ok(self.submit_single(device, hardware, queue, kiocb, transfer)),
            Err(unprepared) => Err((kiocb, unprepared)),
        }
    }

    fn submit_single<'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        hardware: &Guard<'_, Hardware>,
        queue: QueueRef<'_>,
        kiocb: Kiocb<'call>,
        transfer: Transfer<'_, O>,
    ) -> Submitted<'call> {
        let strategy = self.wait_strategy();
        let kiocb = match kiocb.into_async() {
            Ok(kiocb) => kiocb,
            Err(kiocb) => {
                let (result, cleaned) = transfer.execute(strategy);
                return (kiocb.done(result), cleaned);
            }
        };
        if !kiocb.may_be_batched() {
            return (transfer.submit(kiocb, strategy), None);
        }
        let answer = match transfer.for_caller().submit(kiocb) {
            Ok(answer) => {
                Device::defer_kick(device, hardware, queue, strategy);
                answer
            }
            Err((error, kiocb)) => kiocb.done(Err(error)),
        };
        (answer, None)
    }

    /// The wait strategy of this call, for its one request.
    fn wait_strategy(&self) -> WaitStrategy {
        // Durable writes wait for the storage, and the submitter of a polled call polls for its
        // completion in any case.
        if self.flags == 0 && !self.polled {
            WaitStrategy::BusyPoll(self.length)
        } else {
            WaitStrategy::Interrupt
        }
    }
}
