// SPDX-License-Identifier: GPL-2.0

//! Reads and writes: from a call to requests and back.
//!
//! The pages come first, then a slot, then the device: a page may have to be brought by
//! somebody else, who takes as long as he likes and may need this very device for it.
//! Nobody waits for that with anything in hand that others need.
//!
//! Mostly a call is one request. Then nothing is allocated: the slot knows whom
//! to tell. A call that does not fit into one (too many segments or bytes)
//! becomes an [`SplitTransfer`] of several. One that must not wait takes all its pages, and
//! then the slots for all of them at once; others are submitted in batches with one
//! notification each.

use crate::{
    abstractions::{
        dma::segments::{
            CleanedPages,
            Extracted,
            InlineSegments,
            Ownership,
            PageSource, //
        },
        fs::{
            iov::{
                IovIter,
                Pages, //
            },
            kiocb::{
                IoReturn,
                Kiocb, //
            }, //
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
        completion::Reaped,
        polling::{
            Polled, //
            WaitStrategy,
        },
        request::{
            AcquiredSlot,
            Request,
            Transfer, //
        },
        slot::{
            Completion, //
            Limits,
        },
        split::{
            Part, //
            SplitTransfer,
        },
        state::Queue, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// Requests that are prepared before the device is notified.
const BATCH: usize = 8;

/// What the call asks for, cut to the device.
#[derive(Clone, Copy)]
struct Call {
    opcode: Opcode,
    flags: u16,
    position: u64,
    /// At least 1.
    length: usize,
    nowait: bool,
    /// With `nowait`: a part is no answer.
    all_or_nothing: bool,
    /// Somebody will look for the completion.
    polled: bool,
    /// These end the wait for room, before anything was submitted.
    signals: Signals,
    limits: Limits,
}

/// Executes a read or write call.
pub(super) fn transfer<'call>(
    device: ArcBorrow<'_, Device>,
    opcode: Opcode,
    kiocb: Kiocb<'call>,
    iter: &mut IovIter<'_>,
) -> IoReturn<'call> {
    match Call::new(&device, opcode, &kiocb, iter.len()) {
        Ok(Some(call)) => match iter.pages() {
            Pages::User(pages) => call.submit(device, kiocb, pages),
            Pages::Kernel(pages) => call.submit(device, kiocb, pages),
        },
        Ok(None) => kiocb.done(Ok(0)),
        Err(error) => kiocb.done(Err(error)),
    }
}

/// Why a request is not ready, and its pages.
type Unprepared<'s, O> = (Error, Extracted<'s, O>);

/// The answer to a call that was one request, and pages that are to be dropped once the
/// hardware was left.
type Submitted<'call> = (IoReturn<'call>, Option<CleanedPages>);

impl Call {
    /// Cuts the call to the device. `None` where there is nothing to do, `ENOSPC`
    /// for a write at the end.
    fn new(
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

    fn submit<'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        kiocb: Kiocb<'call>,
        mut pages: PageSource<'_, '_, O>,
    ) -> IoReturn<'call> {
        // It cannot fit, and comes again from where it may wait: so no page is touched.
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

    /// The pages for the request that follows after `done` bytes. Nothing that others need
    /// may be held.
    fn extract<'s, O: Ownership>(
        &self,
        pages: &mut PageSource<'_, '_, O>,
        room: Option<&'s mut InlineSegments>,
        done: usize,
    ) -> Result<Extracted<'s, O>> {
        pages.extract(room, self.length - done, self.limits.data)
    }

    /// Makes `slot` the request for `pages`, which follow after `done` bytes.
    fn prepare<'a, 's, O: Ownership>(
        &self,
        slot: AcquiredSlot<'a>,
        pages: Extracted<'s, O>,
        done: usize,
    ) -> Result<Transfer<'a, O>, Unprepared<'s, O>> {
        let position = self.position + done as u64;
        slot.prepare_transfer(self.opcode, self.flags, position, pages)
    }

    /// The queue for a call that may wait.
    fn queue<'a>(&self, hardware: &'a Guard<'_, Hardware>) -> &'a Queue {
        if self.polled {
            hardware.polled_queue()
        } else {
            hardware.queue_here()
        }
    }

    /// Which signals may end a wait after so many bytes were submitted: those who get less than
    /// they have asked for do not expect it of a device like this.
    fn signals_after(&self, submitted: usize) -> Signals {
        if submitted == 0 {
            self.signals
        } else {
            Signals::Fatal
        }
    }

    /// Takes a slot of `queue`, after all who came before. Sleeps.
    fn acquire<'a>(
        device: ArcBorrow<'_, Device>,
        hardware: &'a Guard<'_, Hardware>,
        queue: &'a Queue,
        signals: Signals,
    ) -> Result<AcquiredSlot<'a>> {
        let pci = hardware.device();
        queue.acquire_polled(pci, signals, |seen| {
            Device::note(device, hardware, queue, seen)
        })
    }

    /// What `take` finds in one of the queues, where this call must not wait for its turn.
    /// `take` answers `EAGAIN` where a queue has no room.
    fn find<'a, T>(
        &self,
        device: ArcBorrow<'_, Device>,
        hardware: &'a Guard<'_, Hardware>,
        mut take: impl FnMut(&'a Queue) -> Result<T>,
    ) -> Result<(&'a Queue, T)> {
        let mut found = |queue: &'a Queue| match take(queue) {
            Err(error) if error == EAGAIN => None,
            result => Some(result.map(|taken| (queue, taken))),
        };
        let found = if self.polled {
            let queue = hardware.polled_queue();
            found(queue).or_else(|| {
                // Nobody else may look what there is.
                let pci = hardware.device();
                Device::note(device, hardware, queue, &queue.reap(pci));
                found(queue)
            })
        } else {
            hardware.queues_from_here().find_map(found)
        };
        found.unwrap_or(Err(EAGAIN))
    }

    /// Refuses a call of which nothing was submitted. Its iterator is where it was:
    /// io_uring tries again from there after `EAGAIN`.
    fn refuse<'call, O: Ownership>(
        kiocb: Kiocb<'call>,
        mut pages: PageSource<'_, '_, O>,
        error: Error,
    ) -> IoReturn<'call> {
        pages.rewind();
        kiocb.done(Err(error))
    }

    /// A call that is one request, as far as the DMA layer has room for that.
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
                // They may have to wait for somebody who needs the device, or its end.
                drop(hardware);
                drop(cleaned);
                answer
            }
            // A slot there was.
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

    /// As [`Self::single`]. Returns pages as well that are to be dropped outside the hardware.
    /// On an error all comes back: `EAGAIN` where the DMA layer has no room, or no slot is
    /// free for a call that must not wait.
    fn try_single<'call, 's, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        hardware: &Guard<'_, Hardware>,
        kiocb: Kiocb<'call>,
        first: Extracted<'s, O>,
    ) -> Result<Submitted<'call>, (Kiocb<'call>, Unprepared<'s, O>)> {
        let pci = hardware.device();
        let acquired = if self.nowait {
            self.find(device, hardware, |queue| queue.try_acquire(pci))
        } else {
            let queue = self.queue(hardware);
            Self::acquire(device, hardware, queue, self.signals).map(|slot| (queue, slot))
        };
        let (queue, slot) = match acquired {
            Ok(acquired) => acquired,
            Err(error) => return Err((kiocb, (error, first))),
        };
        match self.prepare(slot, first, 0) {
            Ok(request) => Ok(self.submit_single(device, hardware, queue, kiocb, request)),
            Err(unprepared) => Err((kiocb, unprepared)),
        }
    }

    fn submit_single<'a, 'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        hardware: &'a Guard<'_, Hardware>,
        queue: &'a Queue,
        kiocb: Kiocb<'call>,
        request: Transfer<'a, O>,
    ) -> Submitted<'call> {
        let effort = self.effort();
        let (transport, pci) = (&hardware.transport, hardware.device());
        let kiocb = match kiocb.into_async() {
            Ok(kiocb) => kiocb,
            Err(kiocb) => {
                let limit = queue.poll_limit(effort, true, hardware.poll_limit());
                let note = |seen: &Reaped| Device::note(device, hardware, queue, seen);
                let (result, cleaned) =
                    queue.execute_transfer(transport, pci, request, limit, note);
                return (kiocb.done(result), cleaned);
            }
        };

        let batch = kiocb.may_be_batched() && Device::in_batch(device);
        let limit = if batch {
            None
        } else {
            queue.poll_limit(effort, false, hardware.poll_limit())
        };
        let request = request.for_caller();
        if let Some(limit) = limit {
            let answer = match queue.submit_and_poll(transport, pci, request, limit, kiocb) {
                Ok((seen, Polled::Completed(slot, kiocb))) => {
                    let result = queue.finish_transfer(pci, slot);
                    Device::note(device, hardware, queue, &seen);
                    kiocb.done(result)
                }
                Ok((seen, Polled::Queued(answer))) => {
                    Device::note(device, hardware, queue, &seen);
                    answer
                }
                Err((error, kiocb)) => kiocb.done(Err(error)),
            };
            return (answer, None);
        }
        let submitted = if batch {
            queue
                .submit_one(request, kiocb)
                .inspect(|_| queue.defer_kick(effort))
        } else {
            queue
                .submit_and_reap(transport, pci, request, kiocb)
                .map(|(seen, answer)| {
                    Device::note(device, hardware, queue, &seen);
                    answer
                })
        };
        match submitted {
            Ok(answer) => (answer, None),
            Err((error, kiocb)) => (kiocb.done(Err(error)), None),
        }
    }

    /// What is to be done once the one request of this call is submitted.
    fn effort(&self) -> WaitStrategy {
        // Durable writes wait for the store below, and the submitter of a polled call will look
        // for its end all the same.
        if self.flags == 0 && !self.polled {
            WaitStrategy::BusyPoll(self.length)
        } else {
            WaitStrategy::Interrupt
        }
    }

    /// A call of several requests that must not wait: all of them are submitted now, or
    /// those that there is room for if a part is an answer.
    fn submit_split_nowait<'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        kiocb: Kiocb<'call>,
        mut pages: PageSource<'_, '_, O>,
        first: Extracted<'_, O>,
    ) -> IoReturn<'call> {
        let parts = match self.extract_all(&mut pages, first) {
            Ok(parts) => parts,
            Err(error) => return Self::refuse(kiocb, pages, error),
        };
        let (hardware, operation) = match device
            .hardware()
            .and_then(|hardware| Ok((hardware, SplitTransfer::new()?)))
        {
            Ok(both) => both,
            Err(error) => {
                drop(parts);
                return Self::refuse(kiocb, pages, error);
            }
        };
        let pci = hardware.device();
        let acquired = self.find(device, &hardware, |queue| {
            queue.try_acquire_several(pci, parts.len(), self.all_or_nothing)
        });
        let prepared = acquired.and_then(|(queue, slots)| {
            let (requests, bytes) = self.prepare_all(&operation, slots, parts)?;
            Ok((queue, requests, bytes))
        });
        let (queue, mut requests, bytes) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Self::refuse(kiocb, pages, error),
        };
        let kiocb = Self::attach(&operation, kiocb);
        let submitted = queue.submit(&mut requests);
        drop(requests);
        match submitted {
            Ok(()) => {
                queue.notify(&hardware.transport, pci);
                operation.submitted(bytes, None);
            }
            Err(error) => operation.submitted(0, Some(error)),
        }
        Self::end::<O>(&operation, kiocb)
    }

    /// The pages of the whole call, or of as much of it as a queue can hold; `EAGAIN` where
    /// that is not all, and a part is no answer.
    fn extract_all<'s, O: Ownership>(
        &self,
        pages: &mut PageSource<'_, '_, O>,
        first: Extracted<'s, O>,
    ) -> Result<KVec<Extracted<'s, O>>> {
        let mut taken = first.bytes();
        // As many as it takes if all are like the first: where those are too many, the pages
        // are not worth to be taken here.
        let expected = self.length.div_ceil(taken);
        if self.all_or_nothing && expected > self.limits.requests {
            return Err(EAGAIN);
        }
        let mut parts = KVec::with_capacity(expected.min(self.limits.requests), GFP_KERNEL)?;
        parts.push(first, GFP_KERNEL)?;
        while taken < self.length && parts.len() < self.limits.requests {
            match self.extract(pages, None, taken) {
                Ok(part) => {
                    taken += part.bytes();
                    parts.push(part, GFP_KERNEL)?;
                }
                Err(_) => break,
            }
        }
        if self.all_or_nothing && taken < self.length {
            return Err(EAGAIN);
        }
        Ok(parts)
    }

    /// Makes the slots the first of these requests; returns how many bytes those have.
    /// `EAGAIN` where the DMA layer has no room for them.
    fn prepare_all<'a, O: Ownership>(
        &self,
        operation: &Arc<SplitTransfer>,
        slots: KVec<AcquiredSlot<'a>>,
        parts: KVec<Extracted<'_, O>>,
    ) -> Result<(KVec<Request<'a>>, usize)> {
        let mut requests = KVec::with_capacity(slots.len(), GFP_KERNEL)?;
        let mut bytes = 0;
        for (slot, pages) in slots.into_iter().zip(parts) {
            let length = pages.bytes();
            match self.prepare(slot, pages, bytes) {
                Ok(request) => {
                    let part = Part::new(operation, bytes);
                    requests.push(request.for_owner(Completion::Part(part)), GFP_KERNEL)?;
                    bytes += length;
                }
                Err((error, _)) if self.all_or_nothing || bytes == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok((requests, bytes))
    }

    /// A call of several requests that may wait. `first` is its start.
    fn submit_split<'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        kiocb: Kiocb<'call>,
        pages: PageSource<'_, '_, O>,
        first: Extracted<'_, O>,
    ) -> IoReturn<'call> {
        let operation = match SplitTransfer::new() {
            Ok(operation) => operation,
            Err(error) => {
                drop(first);
                return Self::refuse(kiocb, pages, error);
            }
        };
        let kiocb = Self::attach(&operation, kiocb);
        let mut batches = SplitSubmitter {
            call: *self,
            device,
            operation: &operation,
            submitted: 0,
        };
        // Whatever is left of the pages was given back when this returns.
        let error = batches.submit(pages, first).err();
        operation.submitted(batches.submitted, error);
        Self::end::<O>(&operation, kiocb)
    }

    /// Lets the end of `operation` complete an asynchronous call.
    fn attach<'call>(
        operation: &SplitTransfer,
        kiocb: Kiocb<'call>,
    ) -> Result<IoReturn<'call>, Kiocb<'call>> {
        kiocb.into_async().map(|kiocb| {
            let (queued, answer) = kiocb.queue();
            operation.complete_later(queued);
            answer
        })
    }

    /// The answer to a call whose requests have all been submitted.
    fn end<'call, O: Ownership>(
        operation: &SplitTransfer,
        kiocb: Result<IoReturn<'call>, Kiocb<'call>>,
    ) -> IoReturn<'call> {
        match kiocb {
            Ok(answer) => answer,
            Err(kiocb) => kiocb.done(operation.wait::<O>()),
        }
    }
}

/// Pages of a request to come, and whether the DMA layer had no room for them once.
struct Waiting<'s, O: Ownership> {
    pages: Extracted<'s, O>,
    refused: bool,
}

/// A call of several requests while it is being submitted, a batch at a time.
struct SplitSubmitter<'a> {
    call: Call,
    device: ArcBorrow<'a, Device>,
    operation: &'a Arc<SplitTransfer>,
    /// Bytes that the device has got so far.
    submitted: usize,
}

impl SplitSubmitter<'_> {
    /// Submits the whole call, or as much of it as goes.
    fn submit<'s, O: Ownership>(
        &mut self,
        mut pages: PageSource<'_, '_, O>,
        first: Extracted<'s, O>,
    ) -> Result {
        let mut taken = first.bytes();
        // The last is the next, and some more than a batch come from those that are halved.
        let mut waiting = KVec::with_capacity(3 * BATCH, GFP_KERNEL)?;
        waiting.push(
            Waiting {
                pages: first,
                refused: false,
            },
            GFP_KERNEL,
        )?;
        loop {
            let mut failed = None;
            while taken < self.call.length && waiting.len() < BATCH {
                match self.call.extract(&mut pages, None, taken) {
                    Ok(pages) => {
                        taken += pages.bytes();
                        let next = Waiting {
                            pages,
                            refused: false,
                        };
                        waiting.push(next, GFP_KERNEL)?;
                    }
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            waiting.reverse();
            while !waiting.is_empty() {
                self.submit_some(&mut waiting)?;
            }
            match failed {
                Some(error) => return Err(error),
                None if taken == self.call.length => return Ok(()),
                None => {}
            }
        }
    }

    /// Submits as many as there is room for; sleeps until that is one at least. Only the
    /// device is held meanwhile, and it ends the wait when it is stopped: were several to
    /// hold slots or bounce buffers while they wait for more, all could be held by calls
    /// that never go on.
    fn submit_some<O: Ownership>(&mut self, waiting: &mut KVec<Waiting<'_, O>>) -> Result {
        let hardware = self.device.hardware()?;
        let pci = hardware.device();
        let queue = self.call.queue(&hardware);
        let mut requests = KVec::with_capacity(BATCH, GFP_KERNEL)?;
        let mut bytes = self.submitted;
        while requests.len() < BATCH {
            let Some(next) = waiting.pop() else {
                break;
            };
            let acquired = if requests.is_empty() {
                let signals = self.call.signals_after(self.submitted);
                Call::acquire(self.device, &hardware, queue, signals)
            } else {
                queue.try_acquire(pci)
            };
            let slot = match acquired {
                Ok(slot) => slot,
                Err(error) if error == EAGAIN => {
                    waiting.push(next, GFP_KERNEL)?;
                    break;
                }
                Err(error) => return Err(error),
            };
            let length = next.pages.bytes();
            match self.call.prepare(slot, next.pages, bytes) {
                Ok(request) => {
                    let part = Part::new(self.operation, bytes);
                    requests.push(request.for_owner(Completion::Part(part)), GFP_KERNEL)?;
                    bytes += length;
                }
                Err((error, pages)) if error == EAGAIN => {
                    let refused = Waiting {
                        pages,
                        refused: next.refused,
                    };
                    if requests.is_empty() {
                        self.make_fit(queue, refused, waiting)?;
                    } else {
                        waiting.push(refused, GFP_KERNEL)?;
                    }
                    break;
                }
                Err((error, _)) => return Err(error),
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        queue.submit(&mut requests)?;
        queue.notify(&hardware.transport, pci);
        self.submitted = bytes;
        Ok(())
    }

    /// Waits for room in the DMA layer. What was refused before is halved: it may be larger
    /// than all the room there ever is.
    fn make_fit<'s, O: Ownership>(
        &self,
        queue: &Queue,
        mut refused: Waiting<'s, O>,
        waiting: &mut KVec<Waiting<'s, O>>,
    ) -> Result {
        // The room may be taken by polled requests, and nobody need look for their end.
        Device::poll(self.device)?;
        queue.wait_for_dma_room(self.call.signals_after(self.submitted))?;
        let second = if refused.refused {
            refused.pages.split_off_half()
        } else {
            None
        };
        if let Some(pages) = second {
            let half = Waiting {
                pages,
                refused: false,
            };
            waiting.push(half, GFP_KERNEL)?;
        }
        refused.refused = true;
        waiting.push(refused, GFP_KERNEL)?;
        Ok(())
    }
}
