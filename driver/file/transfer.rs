// SPDX-License-Identifier: GPL-2.0

//! Reads and writes: from a call to requests and back.
//!
//! Mostly a call is one request. Then nothing is allocated: the slot knows whom
//! to tell. A call that does not fit into one (too many segments or bytes)
//! becomes an [`Operation`] of several, submitted in batches with one
//! notification each.

use crate::{
    abstractions::{
        gate::Entered,
        iov::IovIter,
        kiocb::{
            Answer,
            Kiocb, //
        }, //
    },
    device::Device,
    hardware::Hardware,
    layout::{
        Opcode,
        RequestHeader, //
    },
    request::{
        acquired::AcquiredSlot,
        completion::Reaped,
        operation::Operation,
        polling::Effort,
        queue::Queue,
        slot::Owner, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// Requests that are prepared before the device is notified. Also what a call
/// that must not block can consist of.
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
}

/// Executes a read or write call.
pub(super) fn transfer(
    device: ArcBorrow<'_, Device>,
    opcode: Opcode,
    kiocb: Kiocb<'_>,
    iter: &mut IovIter<'_>,
) -> Answer {
    let hardware = match device.hardware() {
        Ok(hardware) => hardware,
        Err(error) => return kiocb.done(Err(error)),
    };
    match Call::new(&device, opcode, &kiocb, iter.len()) {
        Ok(Some(call)) => call.submit(device, &hardware, kiocb, iter),
        Ok(None) => kiocb.done(Ok(0)),
        Err(error) => kiocb.done(Err(error)),
    }
}

impl Call {
    /// Cuts the call to the device. `None` where there is nothing to do, `ENOSPC`
    /// for a write at the end.
    fn new(
        device: &Device,
        opcode: Opcode,
        kiocb: &Kiocb<'_>,
        length: usize,
    ) -> Result<Option<Self>> {
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
        }))
    }

    fn submit(
        &self,
        device: ArcBorrow<'_, Device>,
        hardware: &Entered<'_, Hardware>,
        kiocb: Kiocb<'_>,
        iter: &mut IovIter<'_>,
    ) -> Answer {
        match self.begin(hardware, iter) {
            Ok((queue, slot, bytes)) if bytes == self.length => {
                self.single(device, hardware, queue, kiocb, slot)
            }
            Ok((queue, slot, bytes)) => self.several(hardware, queue, kiocb, iter, slot, bytes),
            Err(error) => kiocb.done(Err(error)),
        }
    }

    /// The queue for the call, and its first request as of [`Self::prepare`]. Who
    /// must not wait for the turn takes any queue that has room.
    fn begin<'a>(
        &self,
        hardware: &'a Entered<'_, Hardware>,
        iter: &mut IovIter<'_>,
    ) -> Result<(&'a Queue, AcquiredSlot<'a>, usize)> {
        let mut on = |queue: &'a Queue| {
            let (slot, bytes) = self.prepare(hardware, queue, iter, 0, !self.nowait)?;
            Ok((queue, slot, bytes))
        };
        if self.polled {
            return on(hardware.polled_queue());
        }
        if !self.nowait {
            return on(hardware.queue_here());
        }
        for queue in hardware.queues_from_here() {
            match on(queue) {
                Err(error) if error == EAGAIN => {}
                result => return result,
            }
        }
        Err(EAGAIN)
    }

    /// A slot with the request for what follows after `done` bytes, and how many
    /// bytes that request has. `EAGAIN` where no slot is free and `wait` forbids to
    /// wait for one.
    fn prepare<'a>(
        &self,
        hardware: &'a Entered<'_, Hardware>,
        queue: &'a Queue,
        iter: &mut IovIter<'_>,
        done: usize,
        wait: bool,
    ) -> Result<(AcquiredSlot<'a>, usize)> {
        let device = hardware.device();
        let mut slot = if wait {
            queue.acquire(device)?
        } else {
            queue.try_acquire(device)?
        };
        let limit = (self.length - done).min(hardware.config().max_request_bytes() as usize);
        let position = self.position + done as u64;
        let bytes = slot.prepare_transfer(self.opcode, self.flags, position, iter, limit)?;
        Ok((slot, bytes))
    }

    /// A call that is one request.
    fn single<'a>(
        &self,
        device: ArcBorrow<'_, Device>,
        hardware: &'a Entered<'_, Hardware>,
        queue: &'a Queue,
        kiocb: Kiocb<'_>,
        mut slot: AcquiredSlot<'a>,
    ) -> Answer {
        let effort = self.effort();
        let (transport, pci) = (&hardware.transport, hardware.device());
        let (queued, answer) = match kiocb.queue() {
            Ok(queued) => queued,
            Err(kiocb) => {
                let limit = queue.poll_limit(effort, true, hardware.poll_limit());
                let note = |seen: &Reaped| Device::note(device, hardware, queue, seen);
                return kiocb.done(queue.execute_transfer(transport, pci, slot, limit, note));
            }
        };

        let batch = Device::in_batch(device);
        let limit = if batch {
            None
        } else {
            queue.poll_limit(effort, false, hardware.poll_limit())
        };
        if let Some(limit) = limit {
            let mut queued = Some(queued);
            let owner = || queued.take().map_or(Owner::Nobody, Owner::Kiocb);
            let result = match queue.submit_and_poll(transport, pci, slot, limit, owner) {
                Ok((mut seen, ended)) => {
                    let result = ended.map(|slot| queue.finish_transfer(pci, slot, &mut seen));
                    Device::note(device, hardware, queue, &seen);
                    result
                }
                Err(error) => Some(Err(error)),
            };
            return match (queued, result) {
                (Some(queued), Some(result)) => queued.withdraw(answer).done(result),
                // The request has the control block.
                _ => answer,
            };
        }
        slot.set_owner(Owner::Kiocb(queued));
        let submitted = if batch {
            queue
                .submit_one(slot)
                .map(|()| queue.hold_notification(effort))
        } else {
            queue
                .submit_and_reap(transport, pci, slot)
                .map(|seen| Device::note(device, hardware, queue, &seen))
        };
        match submitted {
            Ok(()) => answer,
            Err((error, slot)) => match slot.map(|mut slot| slot.set_owner(Owner::Nobody)) {
                Some(Owner::Kiocb(queued)) => queued.withdraw(answer).done(Err(error)),
                // The request has gone after all, and with it the control block.
                _ => answer,
            },
        }
    }

    /// What is to be done once the one request of this call is submitted.
    fn effort(&self) -> Effort {
        // Durable writes wait for the store below, and the submitter of a polled call will look
        // for its end all the same.
        if self.flags == 0 && !self.polled {
            Effort::Poll(self.length)
        } else {
            Effort::Notify
        }
    }

    /// A call that `first`, with its `bytes`, is only the start of.
    fn several<'a>(
        &self,
        hardware: &'a Entered<'_, Hardware>,
        queue: &'a Queue,
        kiocb: Kiocb<'_>,
        iter: &mut IovIter<'_>,
        first: AcquiredSlot<'a>,
        bytes: usize,
    ) -> Answer {
        let operation = match Operation::new() {
            Ok(operation) => operation,
            Err(error) => {
                iter.revert(bytes);
                return kiocb.done(Err(error));
            }
        };
        let mut parts = Parts {
            call: *self,
            hardware,
            queue,
            operation: operation.clone(),
            prepared: [const { None }; BATCH],
            count: 0,
            taken: 0,
        };
        parts.add(first, bytes);

        if self.nowait {
            // What is submitted cannot be called back, so this is all there will be.
            let filled = parts.fill(iter, false);
            if self.all_or_nothing && (filled.is_err() || parts.taken < self.length) {
                iter.revert(parts.taken);
                return kiocb.done(Err(EAGAIN));
            }
            parts.call.length = parts.taken;
        }
        match kiocb.queue() {
            Ok((queued, answer)) => {
                operation.complete_later(queued);
                parts.submit(iter);
                answer
            }
            Err(kiocb) => {
                parts.submit(iter);
                kiocb.done(operation.wait())
            }
        }
    }
}

/// A call of several requests while it is being submitted.
struct Parts<'a, 'h> {
    call: Call,
    hardware: &'a Entered<'h, Hardware>,
    queue: &'a Queue,
    operation: Arc<Operation>,
    /// Requests that the device has not got yet; the first `count`.
    prepared: [Option<AcquiredSlot<'a>>; BATCH],
    count: usize,
    /// Bytes in all requests so far.
    taken: usize,
}

impl<'a> Parts<'a, '_> {
    fn add(&mut self, mut slot: AcquiredSlot<'a>, bytes: usize) {
        slot.set_owner(Owner::Part(self.operation.clone(), self.taken));
        // `fill` stops at the end of the array.
        if let Some(place) = self.prepared.get_mut(self.count) {
            *place = Some(slot);
            self.count += 1;
            self.taken += bytes;
        }
    }

    /// Prepares requests until the call or the room is used up. Waits for a slot,
    /// if `wait` allows, only while nothing is held back: were several to hold
    /// slots while they wait for more, all could be held by calls that never go on.
    ///
    /// `EAGAIN` where no slot is free, which is no error while others are prepared.
    fn fill(&mut self, iter: &mut IovIter<'_>, wait: bool) -> Result {
        while self.count < BATCH && self.taken < self.call.length {
            let wait = wait && self.count == 0;
            let (slot, bytes) =
                self.call
                    .prepare(self.hardware, self.queue, iter, self.taken, wait)?;
            self.add(slot, bytes);
        }
        Ok(())
    }

    /// Submits the whole call, or as much of it as goes, and tells the operation.
    fn submit(mut self, iter: &mut IovIter<'_>) {
        let mut submitted = 0;
        let mut error = None;
        while error.is_none() && submitted < self.call.length {
            match self.fill(iter, true) {
                Err(failure) if failure == EAGAIN && self.count > 0 => {}
                Err(failure) => error = Some(failure),
                Ok(()) => {}
            }
            if self.count == 0 {
                break;
            }
            self.operation.add_parts(self.count);
            match self.queue.submit(&mut self.prepared) {
                Ok(()) => {
                    submitted = self.taken;
                    self.queue
                        .notify(&self.hardware.transport, self.hardware.device());
                }
                Err(failure) => {
                    self.operation.cancel_parts(self.count);
                    error = Some(failure);
                }
            }
            self.count = 0;
        }
        self.operation.submitted(submitted, error);
    }
}
