// SPDX-License-Identifier: GPL-2.0

//! Split transfers: read and write calls of several requests.
//!
//! A call that must not wait extracts all its pages, and then acquires the slots for all of them at
//! once. Other calls are submitted in batches with one notification each.

use super::call::Call;
use crate::{
    abstractions::{
        dma::segments::{
            Extracted,
            Ownership,
            PageSource, //
        },
        fs::kiocb::{
            IoReturn,
            Kiocb, //
        }, //
    },
    device::Device,
    queue::{
        completion::Completion,
        request::{
            AcquiredSlot,
            Request, //
        },
        split::{
            SplitPart,
            SplitTransfer, //
        },
        state::QueueRef, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// Number of requests that are prepared before the device is notified.
const BATCH: usize = 8;

impl Call {
    /// Submits a split transfer that must not wait: all requests now, or, if the call may become a
    /// short transfer, as many as there are slots for.
    pub(super) fn submit_split_nowait<'call, O: Ownership>(
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
        let (hardware, transfer) = match device
            .hardware()
            .and_then(|hardware| Ok((hardware, SplitTransfer::new()?)))
        {
            Ok(both) => both,
            Err(error) => {
                drop(parts);
                return Self::refuse(kiocb, pages, error);
            }
        };
        let acquired = self.find(&hardware, |queue| {
            queue.try_acquire_several(parts.len(), self.all_or_nothing)
        });
        let prepared = acquired.and_then(|(queue, slots)| {
            let (requests, bytes) = self.prepare_all(&transfer, slots, parts)?;
            Ok((queue, requests, bytes))
        });
        let (queue, mut requests, bytes) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Self::refuse(kiocb, pages, error),
        };
        let kiocb = Self::attach(&transfer, kiocb);
        let submitted = queue.submit_all(&mut requests);
        drop(requests);
        match submitted {
            Ok(()) => {
                queue.notify();
                transfer.submitted(bytes, None);
            }
            Err(error) => transfer.submitted(0, Some(error)),
        }
        Self::end::<O>(&transfer, kiocb)
    }

    /// Extracts the pages of the whole call, or of as many requests as a queue can hold; `EAGAIN`
    /// if that is not all and the call must not become a short transfer.
    fn extract_all<'s, O: Ownership>(
        &self,
        pages: &mut PageSource<'_, '_, O>,
        first: Extracted<'s, O>,
    ) -> Result<KVec<Extracted<'s, O>>> {
        let mut taken = first.bytes();
        // The number of requests if all are like the first: if these are too many, extracting the
        // pages here is useless.
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

    /// Prepares the slots as the first of these requests; returns the number of their bytes.
    /// `EAGAIN` if the DMA layer has no room for them.
    fn prepare_all<'a, O: Ownership>(
        &self,
        transfer: &Arc<SplitTransfer>,
        slots: KVec<AcquiredSlot<'a>>,
        parts: KVec<Extracted<'_, O>>,
    ) -> Result<(KVec<Request<'a>>, usize)> {
        let mut requests = KVec::with_capacity(slots.len(), GFP_KERNEL)?;
        let mut bytes = 0;
        for (slot, pages) in slots.into_iter().zip(parts) {
            let length = pages.bytes();
            match self.prepare(slot, pages, bytes) {
                Ok(request) => {
                    let part = SplitPart::new(transfer, bytes);
                    requests.push(request.for_completion(Completion::Part(part)), GFP_KERNEL)?;
                    bytes += length;
                }
                Err((error, _)) if self.all_or_nothing || bytes == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok((requests, bytes))
    }

    /// Submits a split transfer that may wait. `first` is its start.
    pub(super) fn submit_split<'call, O: Ownership>(
        &self,
        device: ArcBorrow<'_, Device>,
        kiocb: Kiocb<'call>,
        pages: PageSource<'_, '_, O>,
        first: Extracted<'_, O>,
    ) -> IoReturn<'call> {
        let transfer = match SplitTransfer::new() {
            Ok(transfer) => transfer,
            Err(error) => {
                drop(first);
                return Self::refuse(kiocb, pages, error);
            }
        };
        let kiocb = Self::attach(&transfer, kiocb);
        let mut submitter = SplitSubmitter {
            call: *self,
            device,
            transfer: &transfer,
            submitted: 0,
        };
        // By the return of `submit`, the pages that were not submitted are released.
        let error = submitter.submit(pages, first).err();
        transfer.submitted(submitter.submitted, error);
        Self::end::<O>(&transfer, kiocb)
    }

    /// Makes the end of `transfer` complete an asynchronous call.
    fn attach<'call>(
        transfer: &SplitTransfer,
        kiocb: Kiocb<'call>,
    ) -> Result<IoReturn<'call>, Kiocb<'call>> {
        kiocb.into_async().map(|kiocb| {
            let (queued, answer) = kiocb.queue();
            transfer.complete_later(queued);
            answer
        })
    }

    /// The return value of a call whose requests have all been submitted.
    fn end<'call, O: Ownership>(
        transfer: &SplitTransfer,
        kiocb: Result<IoReturn<'call>, Kiocb<'call>>,
    ) -> IoReturn<'call> {
        match kiocb {
            Ok(answer) => answer,
            Err(kiocb) => kiocb.done(transfer.wait::<O>()),
        }
    }
}

/// Pages of a later request, and whether the DMA layer had no room for them once.
struct Waiting<'s, O: Ownership> {
    pages: Extracted<'s, O>,
    refused: bool,
}

/// A call of several requests during its submission, a batch at a time.
struct SplitSubmitter<'a> {
    call: Call,
    device: ArcBorrow<'a, Device>,
    transfer: &'a Arc<SplitTransfer>,
    /// Number of bytes submitted so far.
    submitted: usize,
}

impl SplitSubmitter<'_> {
    /// Submits the whole call, or as much of it as possible.
    fn submit<'s, O: Ownership>(
        &mut self,
        mut pages: PageSource<'_, '_, O>,
        first: Extracted<'s, O>,
    ) -> Result {
        let mut taken = first.bytes();
        // The last element is the next request; more than one batch can come from halved requests.
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

    /// Submits as many requests as there is room for; sleeps until that is at least one. Meanwhile
    /// it holds only the `Guard` of the device, which ends the wait when it is stopped: if several
    /// calls held slots or bounce buffers while they wait for more, calls that never continue could
    /// hold all of them.
    fn submit_some<O: Ownership>(&mut self, waiting: &mut KVec<Waiting<'_, O>>) -> Result {
        let hardware = self.device.hardware()?;
        let queue = self.call.queue(&hardware);
        let mut requests = KVec::with_capacity(BATCH, GFP_KERNEL)?;
        let mut bytes = self.submitted;
        while requests.len() < BATCH {
            let Some(next) = waiting.pop() else {
                break;
            };
            let acquired = if requests.is_empty() {
                queue.acquire(self.call.signals_after(self.submitted))
            } else {
                queue.try_acquire()
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
                    let part = SplitPart::new(self.transfer, bytes);
                    requests.push(request.for_completion(Completion::Part(part)), GFP_KERNEL)?;
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
        queue.submit_all(&mut requests)?;
        queue.notify();
        self.submitted = bytes;
        Ok(())
    }

    /// Waits for room in the DMA layer. Halves a request that was refused before, because it may be
    /// larger than the whole room.
    fn make_fit<'s, O: Ownership>(
        &self,
        queue: QueueRef<'_>,
        mut refused: Waiting<'s, O>,
        waiting: &mut KVec<Waiting<'s, O>>,
    ) -> Result {
        // Polled requests may occupy the room, and their submitters need not poll for their
        // completion.
        self.device.reap_polled()?;
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
