// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Execution of requests against the asynchronous face of a storage: the worker of a queue
//! begins an operation and goes on with other requests.
//!
//! ```text
//!                 buffers                             ended
//!  new request ───────────► copy in, submit operation ─────► complete: copy out, status
//!       ▲   wait for room          ▲                  │
//!       └──────────────────────────┴──────────────────┘
//!               resume: the next step of a command
//! ```
//!
//! The worker copies between guest memory and the buffer of an operation; the storage knows
//! buffers only. A queue that is stopped cancels what has not begun. What has begun ends some
//! time, and nobody hears of it; the storage keeps it before what comes later.
//!
//! Every operation that changes the storage is submitted by the worker, so none is after a stop.
//! The flush of a durable write is submitted by whoever says that the write has ended, maybe after
//! a stop: it changes nothing that can be read, and its end is dropped. A copy that changes its own
//! source cannot be executed anew, and is executed in one go by the other face.

use std::sync::Arc;

use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use ringbar_storage::{AsyncStorage, Buffer, Completed, Extent, Operation, Owner, StorageError};
use vm_memory::{GuestMemory, Permissions};

use crate::command::{Progress, STORAGE_STEP};
use crate::executor::{Outcome, after_flush, transfer};
use crate::injection::invert;
use crate::request::ParsedChain;
use crate::response::{Request, Response, Submission};
use crate::steps::{Phase, Steps};

/// Bytes of one step of a command that reads or writes. A multiple of the pattern of a fill.
const STEP: u64 = 256 << 10;

/// What a command needs next.
enum Next {
    /// A buffer for each of these.
    Buffers(Vec<Extent>),
    Submit(Operation),
    Done(Result<u64, StorageError>),
}

/// Executes the requests of one queue.
#[derive(Debug)]
pub(crate) struct AsyncExecutor {
    face: Arc<dyn AsyncStorage>,
    owner: Owner,
}

impl AsyncExecutor {
    pub(crate) fn new(face: Arc<dyn AsyncStorage>, queue: u16) -> Self {
        Self {
            face,
            owner: owner(queue),
        }
    }

    /// Begins a request, or its next step. The chain was parsed.
    pub(crate) fn step<M: GuestMemory<Bitmap = ()>>(
        &self,
        memory: &M,
        request: Request,
    ) -> Submission {
        let Some(&header) = request.scratch().header() else {
            return completed(request, Outcome::refused(StatusCode::Invalid));
        };
        match header.opcode {
            Opcode::Read | Opcode::Write => self.transfer(memory, request, &header),
            Opcode::Flush => {
                self.flush(request, Outcome::from_storage(0, Ok(())));
                Submission::Deferred
            }
            Opcode::MapAperture => completed(request, Outcome::refused(StatusCode::Unsupported)),
            Opcode::Discard
            | Opcode::WriteZeroes
            | Opcode::Copy
            | Opcode::Fill
            | Opcode::Compare
            | Opcode::Crc32c => self.command(request, &header),
        }
    }

    fn transfer<M: GuestMemory<Bitmap = ()>>(
        &self,
        memory: &M,
        request: Request,
        header: &RequestHeader,
    ) -> Submission {
        if header.length == 0 {
            return self.conclude(request, Outcome::from_storage(0, Ok(())));
        }
        let extent = Extent {
            offset: header.offset,
            length: header.length,
        };
        let Some(mut request) = self.take_buffers(request, vec![extent]) else {
            return Submission::Deferred;
        };
        let (_, parsed) = request.parts();
        let Some(mut buffer) = parsed.steps.buffers.pop() else {
            return completed(request, Outcome::refused(StatusCode::IoError));
        };
        let operation = match header.opcode {
            Opcode::Read => Operation::Read(buffer),
            _ => {
                let copied = copy_in(memory, header, parsed, &mut buffer);
                if copied.status.code != StatusCode::Ok {
                    return completed(request, copied);
                }
                Operation::Write(buffer)
            }
        };
        let own = self.clone_for_later();
        let length = header.length;
        let ended = move |completed: Completed| {
            let (_, parsed) = request.parts();
            let outcome = match completed.result {
                Ok(()) => {
                    parsed.steps.buffers.extend(completed.buffer);
                    Outcome::from_storage(length, Ok(()))
                }
                Err(error) => Outcome::from_storage(0, Err(error)),
            };
            if let Submission::Completed(request, answer) = own.conclude(request, outcome) {
                request.complete(answer);
            }
        };
        self.face.submit(self.owner, operation, Box::new(ended));
        Submission::Deferred
    }

    fn command(&self, mut request: Request, header: &RequestHeader) -> Submission {
        loop {
            let (_, parsed) = request.parts();
            match next(header, &mut parsed.progress, &mut parsed.steps) {
                Next::Done(Ok(result)) => {
                    return self.conclude(request, Outcome::from_storage(result, Ok(())));
                }
                Next::Done(Err(error)) => {
                    return completed(request, Outcome::from_storage(0, Err(error)));
                }
                Next::Buffers(extents) => match self.take_buffers(request, extents) {
                    Some(with_buffers) => request = with_buffers,
                    None => return Submission::Deferred,
                },
                Next::Submit(operation) => {
                    let ended = move |completed| {
                        request.parts().1.steps.completed = Some(completed);
                        request.resume();
                    };
                    self.face.submit(self.owner, operation, Box::new(ended));
                    return Submission::Deferred;
                }
            }
        }
    }

    /// Takes buffers for a request, unless it has some. `None` where there is no room: it is
    /// resumed with them.
    fn take_buffers(&self, mut request: Request, extents: Vec<Extent>) -> Option<Request> {
        if !request.scratch().steps.buffers.is_empty() {
            return Some(request);
        }
        let buffers = self.face.buffers();
        if let Some(taken) = buffers.try_take(&extents) {
            request.parts().1.steps.buffers = taken;
            return Some(request);
        }
        let granted = move |granted| {
            request.parts().1.steps.buffers = granted;
            request.resume();
        };
        buffers.wait(self.owner, extents, Box::new(granted));
        None
    }

    /// A request is done, but for its flush if it wants one.
    fn conclude(&self, request: Request, outcome: Outcome) -> Submission {
        let header = request.scratch().header();
        let durable = header.is_some_and(|header| header.flags & RequestHeader::FUA != 0);
        if !durable || outcome.status.code != StatusCode::Ok {
            return completed(request, outcome);
        }
        self.flush(request, outcome);
        Submission::Deferred
    }

    /// Completes a request with an outcome once everything before is durable.
    fn flush(&self, request: Request, outcome: Outcome) {
        let flushed = move |completed: Completed| {
            let header = request.scratch().header();
            let outcome = after_flush(header, outcome.status.result, completed.result);
            request.complete(Response::Status(outcome));
        };
        self.face
            .submit(self.owner, Operation::Flush, Box::new(flushed));
    }

    fn clone_for_later(&self) -> Self {
        Self {
            face: Arc::clone(&self.face),
            owner: self.owner,
        }
    }
}

/// Whose operations those of a queue are.
pub(crate) const fn owner(queue: u16) -> Owner {
    Owner(queue as u32)
}

fn completed(request: Request, outcome: Outcome) -> Submission {
    Submission::Completed(request, Response::Status(outcome))
}

/// Copies what a request writes out of guest memory.
fn copy_in<M: GuestMemory<Bitmap = ()>>(
    memory: &M,
    header: &RequestHeader,
    parsed: &ParsedChain,
    buffer: &mut Buffer,
) -> Outcome {
    let mut rest = buffer.data_mut();
    let copied = transfer(memory, header, parsed, Permissions::Read, |_, slice| {
        let (chunk, after) = std::mem::take(&mut rest).split_at_mut(slice.len());
        slice.copy_to(chunk);
        rest = after;
        Ok(())
    });
    if let Some(corrupt) = parsed.faults.corrupt {
        invert(corrupt, header.offset, buffer.data_mut());
    }
    copied
}

/// Copies what a read has brought to guest memory. Gives the buffers of the request back in
/// any case. Other requests keep their status.
pub(crate) fn copy_out<M: GuestMemory<Bitmap = ()>>(
    memory: &M,
    parsed: &mut ParsedChain,
    status: RequestStatus,
) -> RequestStatus {
    let mut steps = std::mem::take(&mut parsed.steps);
    let (Some(header), [buffer]) = (parsed.header(), &mut steps.buffers[..]) else {
        return status;
    };
    if header.opcode != Opcode::Read || status.code != StatusCode::Ok {
        return status;
    }
    if let Some(corrupt) = parsed.faults.corrupt {
        invert(corrupt, header.offset, buffer.data_mut());
    }
    let mut rest = buffer.data();
    let copied = transfer(memory, header, parsed, Permissions::Write, |_, slice| {
        let (chunk, after) = rest.split_at(slice.len());
        slice.copy_from(chunk);
        rest = after;
        Ok(())
    });
    copied.status
}

/// What a command needs next. Its ranges lie within the storage.
fn next(header: &RequestHeader, progress: &mut Progress, steps: &mut Steps) -> Next {
    let opcode = header.opcode;
    let clears = matches!(opcode, Opcode::Discard | Opcode::WriteZeroes);
    let mut brought = None;
    if let Some(Completed { result, buffer }) = steps.completed.take() {
        if let Err(error) = result {
            return Next::Done(Err(error));
        }
        brought = buffer;
    }
    let limit = if clears { STORAGE_STEP } else { STEP };
    let length = (header.length - progress.done).min(limit);
    let extent = |offset: u64| Extent {
        offset: offset + progress.done,
        length,
    };
    let (first, second) = (header.offset, header.argument);
    match steps.phase {
        Phase::Begin if length == 0 => {
            return Next::Done(Ok(match opcode {
                // Fits: the header was parsed.
                Opcode::Crc32c if progress.done == 0 => header.argument,
                Opcode::Crc32c => progress.crc.into(),
                _ => header.length,
            }));
        }
        Phase::Begin => {
            let extents = match opcode {
                Opcode::Discard => {
                    steps.phase = Phase::Last;
                    return Next::Submit(Operation::Discard(extent(first)));
                }
                Opcode::WriteZeroes => {
                    steps.phase = Phase::Last;
                    return Next::Submit(Operation::WriteZeroes(extent(first)));
                }
                Opcode::Copy => vec![extent(first), extent(second)],
                Opcode::Compare => vec![extent(second), extent(first)],
                _ => vec![extent(first)],
            };
            let Some(mut buffer) = steps.buffers.pop() else {
                return Next::Buffers(extents);
            };
            if opcode == Opcode::Fill {
                let pattern = second.to_le_bytes();
                for word in buffer.data_mut().chunks_mut(pattern.len()) {
                    word.copy_from_slice(&pattern[..word.len()]);
                }
                steps.phase = Phase::Last;
                return Next::Submit(Operation::Write(buffer));
            }
            steps.phase = match opcode {
                Opcode::Crc32c => Phase::Last,
                _ => Phase::Second,
            };
            return Next::Submit(Operation::Read(buffer));
        }
        Phase::Second => {
            steps.phase = Phase::Last;
            let (Some(brought), Some(mut other)) = (brought, steps.buffers.pop()) else {
                return lost();
            };
            if opcode == Opcode::Copy {
                other.data_mut().copy_from_slice(brought.data());
                return Next::Submit(Operation::Write(other));
            }
            steps.buffers.push(brought);
            return Next::Submit(Operation::Read(other));
        }
        Phase::Last => {}
    }
    match (opcode, brought, steps.buffers.pop()) {
        (Opcode::Crc32c, Some(brought), _) => {
            let before = match progress.done {
                // Fits: the header was parsed.
                0 => header.argument as u32,
                _ => progress.crc,
            };
            progress.crc = crc32c::crc32c_append(before, brought.data());
        }
        (Opcode::Compare, Some(second), Some(first)) if first.data() != second.data() => {
            let pairs = first.data().iter().zip(second.data());
            let equal = pairs.take_while(|(one, other)| one == other).count();
            return Next::Done(Ok(progress.done + equal as u64));
        }
        (Opcode::Crc32c, ..) | (Opcode::Compare, None, _) | (Opcode::Compare, _, None) => {
            return lost();
        }
        _ => {}
    }
    progress.done += length;
    steps.phase = Phase::Begin;
    next(header, progress, steps)
}

/// The storage has lost the buffer of an operation that ended well, which none does.
fn lost() -> Next {
    let error = std::io::Error::other("the storage has lost a buffer");
    Next::Done(Err(error.into()))
}
