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
        operation::Operation,
        queue::{
            AcquiredSlot,
            Queue, //
        },
        slot::Owner, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Requests that are prepared before the device is notified. Also what a call
/// that must not block can consist of.
const BATCH: usize = 8;

type Batch<'a> = [Option<AcquiredSlot<'a>>; BATCH];

/// What the call asks for, cut to the device.
struct Call {
    opcode: Opcode,
    flags: u16,
    position: u64,
    /// At least 1.
    length: usize,
    nowait: bool,
}

/// Executes a read or write call.
pub(super) fn transfer(
    device: &Device,
    opcode: Opcode,
    kiocb: Kiocb<'_>,
    iter: &mut IovIter<'_>,
) -> Answer {
    let hardware = match device.hardware() {
        Ok(hardware) => hardware,
        Err(error) => return kiocb.done(Err(error)),
    };
    match Call::new(device, opcode, &kiocb, iter.len()) {
        Ok(Some(call)) => call.submit(&hardware, kiocb, iter),
        Ok(None) => kiocb.done(Ok(0)),
        Err(error) => kiocb.done(Err(error)),
    }
}

impl Call {
    /// Cuts the call to the device. `None` where there is nothing to do, `ENOSPC`
    /// for a write at the end.
    fn new(device: &Device, opcode: Opcode, kiocb: &Kiocb<'_>, length: usize) -> Result<Option<Self>> {
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
        }))
    }

    fn submit(
        &self,
        hardware: &Entered<'_, Hardware>,
        kiocb: Kiocb<'_>,
        iter: &mut IovIter<'_>,
    ) -> Answer {
        let queue = match hardware.queue_here() {
            Ok(queue) => queue,
            Err(error) => return kiocb.done(Err(error)),
        };
        match self.prepare(hardware, queue, iter, 0) {
            Ok((slot, bytes)) if bytes == self.length => single(hardware, queue, kiocb, slot),
            Ok((slot, bytes)) => self.several(hardware, queue, kiocb, iter, slot, bytes),
            Err(error) => kiocb.done(Err(error)),
        }
    }

    /// A slot with the request for what follows after `done` bytes, and how many
    /// bytes that request has.
    fn prepare<'a>(
        &self,
        hardware: &'a Entered<'_, Hardware>,
        queue: &'a Queue,
        iter: &mut IovIter<'_>,
        done: usize,
    ) -> Result<(AcquiredSlot<'a>, usize)> {
        let device = hardware.device();
        let mut slot = if self.nowait {
            queue.try_acquire(device)?
        } else {
            queue.acquire(device)?
        };
        let bytes = self.fill(hardware, &mut slot, iter, done)?;
        Ok((slot, bytes))
    }

    /// Prepares the request for what follows after `done` bytes.
    fn fill(
        &self,
        hardware: &Hardware,
        slot: &mut AcquiredSlot<'_>,
        iter: &mut IovIter<'_>,
        done: usize,
    ) -> Result<usize> {
        let limit = (self.length - done).min(hardware.config().max_request_bytes() as usize);
        let position = self.position + done as u64;
        slot.prepare_transfer(self.opcode, self.flags, position, iter, limit)
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
        let mut batch: Batch<'_> = [const { None }; BATCH];
        let mut lengths = [0; BATCH];
        batch[0] = Some(first);
        lengths[0] = bytes;
        let mut count = 1;
        let mut done = bytes;

        if self.nowait {
            // All or nothing: what has been submitted cannot be called back, and the caller comes
            // again with the whole.
            while done < self.length && count < BATCH {
                match self.prepare(hardware, queue, iter, done) {
                    Ok((slot, bytes)) => {
                        batch[count] = Some(slot);
                        lengths[count] = bytes;
                        count += 1;
                        done += bytes;
                    }
                    Err(_) => break,
                }
            }
            if done < self.length {
                iter.revert(done);
                return kiocb.done(Err(EAGAIN));
            }
        }

        let (queued, answer) = match kiocb.queue() {
            Ok((queued, answer)) => (Some(queued), Ok(answer)),
            Err(kiocb) => (None, Err(kiocb)),
        };
        let operation = match Operation::new(queued) {
            Ok(operation) => operation,
            Err(queued) => {
                iter.revert(done);
                let kiocb = match (queued, answer) {
                    (Some(queued), Ok(answer)) => queued.withdraw(answer),
                    (_, Err(kiocb)) => kiocb,
                    // `queue` gives either both or none.
                    (None, Ok(answer)) => return answer,
                };
                return kiocb.done(Err(ENOMEM));
            }
        };

        let (submitted, error) =
            self.feed(hardware, queue, iter, &operation, &mut batch, &lengths, done);
        operation.submitted(submitted, error);
        match answer {
            Ok(answer) => answer,
            Err(kiocb) => kiocb.done(operation.wait()),
        }
    }

    /// Submits what is in `batch`, `done` bytes, and then the rest of the call.
    /// Returns the bytes submitted and what kept the rest from being so.
    #[expect(clippy::too_many_arguments, reason = "the state of one loop")]
    fn feed<'a>(
        &self,
        hardware: &'a Entered<'_, Hardware>,
        queue: &'a Queue,
        iter: &mut IovIter<'_>,
        operation: &Arc<Operation>,
        batch: &mut Batch<'a>,
        lengths: &[usize; BATCH],
        mut done: usize,
    ) -> (usize, Option<Error>) {
        let mut start = 0;
        for (slot, length) in batch.iter_mut().zip(lengths) {
            if let Some(slot) = slot {
                slot.set_owner(Owner::Part(operation.clone(), start));
                operation.add_part();
            }
            start += length;
        }
        let mut submitted = 0;
        let mut pending = batch.iter().flatten().count();
        let mut error = None;
        while error.is_none() && (pending > 0 || done < self.length) {
            if pending < BATCH && done < self.length {
                // While requests are held back, nobody may be waited for: others could hold theirs
                // back as well, and all slots would be taken by requests that nobody submits.
                let slot = match queue.try_acquire(hardware.device()) {
                    Err(error) if error == EAGAIN && pending == 0 => {
                        queue.acquire(hardware.device())
                    }
                    slot => slot,
                };
                let filled = slot.and_then(|mut slot| {
                    let bytes = self.fill(hardware, &mut slot, iter, done)?;
                    Ok((slot, bytes))
                });
                match filled {
                    Ok((mut slot, bytes)) => {
                        slot.set_owner(Owner::Part(operation.clone(), done));
                        operation.add_part();
                        batch[pending] = Some(slot);
                        pending += 1;
                        done += bytes;
                        continue;
                    }
                    Err(failure) if failure == EAGAIN && pending > 0 => {}
                    Err(failure) => error = Some(failure),
                }
            }
            match queue.submit(&hardware.transport, hardware.device(), batch) {
                Ok(()) => submitted = done,
                Err(failure) => {
                    error = Some(failure);
                    for mut slot in batch.iter_mut().filter_map(Option::take) {
                        if let Owner::Part(operation, _) = slot.set_owner(Owner::Nobody) {
                            operation.cancel_part();
                        }
                    }
                }
            }
            pending = 0;
        }
        (submitted, error)
    }
}

/// A call that is one request.
fn single<'a>(
    hardware: &'a Entered<'_, Hardware>,
    queue: &'a Queue,
    kiocb: Kiocb<'_>,
    mut slot: AcquiredSlot<'a>,
) -> Answer {
    let (transport, device) = (&hardware.transport, hardware.device());
    let (queued, answer) = match kiocb.queue() {
        Ok(queued) => queued,
        Err(kiocb) => return kiocb.done(queue.execute_transfer(transport, device, slot)),
    };
    slot.set_owner(Owner::Kiocb(queued));
    match queue.submit_one(transport, device, slot) {
        Ok(()) => answer,
        Err((error, slot)) => match slot.map(|mut slot| slot.set_owner(Owner::Nobody)) {
            Some(Owner::Kiocb(queued)) => queued.withdraw(answer).done(Err(error)),
            // The request has gone after all, and with it the control block.
            _ => answer,
        },
    }
}
