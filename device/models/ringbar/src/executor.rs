// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Execution of requests against a storage.

use std::sync::Arc;

use ringbar_engine::Fault;
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use ringbar_storage::{ErrorKind, Storage, StorageError};
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::command::{Executor as Commands, Step};
use crate::injection;
use crate::request::ParsedChain;

/// Result of a request.
#[derive(Debug)]
pub struct Outcome {
    /// Status for the driver.
    pub(crate) status: RequestStatus,
    /// Error of the storage, for the host's log; `None` where the storage did not fail.
    pub(crate) failure: Option<StorageError>,
}

impl Outcome {
    /// The outcome of an operation on the storage. The status has `result`, also where the
    /// operation failed.
    pub(crate) fn from_storage(result: u64, operation: Result<(), StorageError>) -> Self {
        let failure = operation.err();
        let code = failure.as_ref().map_or(StatusCode::Ok, status_code);
        Self {
            status: RequestStatus { code, result },
            failure,
        }
    }

    /// The outcome of a request that is refused with `code`; its result is 0.
    pub(crate) const fn refused(code: StatusCode) -> Self {
        Self {
            status: RequestStatus { code, result: 0 },
            failure: None,
        }
    }
}

impl From<RequestStatus> for Outcome {
    fn from(status: RequestStatus) -> Self {
        Self {
            status,
            failure: None,
        }
    }
}

/// The status code that reports an error of the storage.
fn status_code(error: &StorageError) -> StatusCode {
    match error.kind() {
        ErrorKind::OutOfRange => StatusCode::OutOfRange,
        ErrorKind::NoSpace => StatusCode::NoSpace,
        ErrorKind::Io => StatusCode::IoError,
    }
}

/// A flush that a request needs before it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Of the whole storage.
    All,
    /// Of a range.
    Range {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
}

impl Flush {
    pub(crate) fn execute(self, storage: &dyn Storage) -> Result<(), StorageError> {
        match self {
            Self::All => storage.flush(),
            Self::Range { offset, length } => storage.flush_range(offset, length),
        }
    }
}

/// Result of one step of a request.
#[derive(Debug)]
pub(crate) enum Executed {
    /// The request is done.
    Done(Outcome),
    /// The request is done with this result once the flush has succeeded.
    Flush(u64, Flush),
    /// There are more steps.
    More,
}

/// Executes the requests of one queue. Requests reuse its buffers, so they allocate nothing.
#[derive(Debug)]
pub(crate) struct Executor {
    storage: Arc<dyn Storage>,
    commands: Commands,
}

impl Executor {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            commands: Commands::default(),
        }
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Executes the next step of an I/O request.
    pub(crate) fn step<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        mem: &M,
        parsed: &mut ParsedChain,
    ) -> Executed {
        let Some(&header) = parsed.header() else {
            return Executed::Done(Outcome::refused(StatusCode::Invalid));
        };
        let storage = self.storage.as_ref();
        let corrupt = parsed.faults.corrupt;
        let outcome = match header.opcode {
            Opcode::Read => transfer(mem, &header, parsed, Permissions::Write, |at, slice| {
                storage.read(at, slice)?;
                if let Some(corrupt) = corrupt {
                    injection::invert_read(corrupt, at, &slice);
                }
                Ok(())
            }),
            Opcode::Write => transfer(mem, &header, parsed, Permissions::Read, |at, slice| {
                storage.write(at, slice)?;
                match corrupt {
                    None => Ok(()),
                    Some(corrupt) => injection::invert_written(storage, corrupt, at, &slice),
                }
            }),
            Opcode::Flush => return Executed::Flush(0, Flush::All),
            Opcode::MapAperture => Outcome::refused(StatusCode::Unsupported),
            Opcode::Discard
            | Opcode::WriteZeroes
            | Opcode::Copy
            | Opcode::Fill
            | Opcode::Compare
            | Opcode::Crc32c => match self.commands.step(storage, &header, &mut parsed.progress) {
                Step::More => return Executed::More,
                Step::Done(Ok(result)) => Outcome::from_storage(result, Ok(())),
                Step::Done(Err(error)) => Outcome::from_storage(0, Err(error)),
            },
        };
        if outcome.status.code == StatusCode::Ok && header.flags & RequestHeader::FUA != 0 {
            let (offset, length) = (header.offset, header.length);
            return Executed::Flush(outcome.status.result, Flush::Range { offset, length });
        }
        Executed::Done(outcome)
    }
}

/// The outcome of a request with this result after its flush. A command whose flush failed has
/// the result 0.
pub(crate) fn after_flush(
    header: Option<&RequestHeader>,
    result: u64,
    flushed: Result<(), StorageError>,
) -> Outcome {
    let is_command = header.is_some_and(|header| header.opcode.is_command());
    let result = match flushed {
        Err(_) if is_command => 0,
        _ => result,
    };
    Outcome::from_storage(result, flushed)
}

/// Copies between the data segments and the storage. `copy` gets one slice for each memory
/// region that a segment spans.
pub(crate) fn transfer<M: GuestMemory<Bitmap = ()>>(
    mem: &M,
    header: &RequestHeader,
    parsed: &ParsedChain,
    access: Permissions,
    mut copy: impl FnMut(u64, VolatileSlice<'_>) -> Result<(), StorageError>,
) -> Outcome {
    let mut done = 0;
    for segment in parsed.data() {
        // The memory table may have changed since the request was parsed.
        let gone = |done| RequestStatus {
            code: StatusCode::Invalid,
            result: done,
        };
        let Ok(slices) = mem.get_slices(segment.addr, segment.len as usize, access) else {
            return gone(done).into();
        };
        for slice in slices {
            let Ok(slice) = slice else {
                return gone(done).into();
            };
            let length = slice.len() as u64;
            if let Err(error) = copy(header.offset + done, slice) {
                return Outcome::from_storage(done, Err(error));
            }
            done += length;
        }
    }
    Outcome::from_storage(done, Ok(()))
}

/// Writes the status of a request. Returns the length for the used ring (VIRTIO 1.3,
/// 2.7.8.2): the number of bytes that the device wrote without a gap from the start of the
/// device-writable part. A read that failed leaves a gap between its data and its status, so
/// its length excludes the status.
pub(crate) fn write_status<M: GuestMemory>(
    mem: &M,
    parsed: &ParsedChain,
    status: RequestStatus,
) -> Result<u32, Fault> {
    parsed.status.write(mem, status)?;
    let mut used = match parsed.header().map(|header| header.opcode) {
        Some(Opcode::Read) => status.result,
        _ => 0,
    };
    if used == parsed.writable {
        used += RequestStatus::SIZE as u64;
    }
    Ok(u32::try_from(used).unwrap_or(u32::MAX))
}
