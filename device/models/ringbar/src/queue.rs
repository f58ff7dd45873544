// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Execution of the requests of one queue.

use std::sync::Arc;

use ringbar_spec::{DeviceConfig, Opcode, QueueFault, RequestHeader, RequestStatus, StatusCode};
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::chain::ChainHead;
use crate::command::Executor;
pub use crate::request::QueueRole;
use crate::request::{Limits, Parser, Request};
use crate::storage::{Storage, StorageError};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The opcode; `None` where the request was refused as such.
    pub opcode: Option<Opcode>,
    /// The status that was written.
    pub status: RequestStatus,
    /// Whether it ended well with [`RequestHeader::FUA`]: what it wrote is durable.
    pub durable: bool,
    /// For the used ring (VIRTIO 1.3, 2.7.8.2): how many bytes the device wrote
    /// from the start of the device-writable part on. A read that failed has a
    /// gap between its data and its status; then the status does not count.
    pub used_len: u32,
}

/// Executes the requests of one queue against a storage.
#[derive(Debug)]
pub struct RequestQueue {
    storage: Arc<dyn Storage>,
    parser: Parser,
    commands: Executor,
    /// Why the storage failed the last request.
    failure: Option<StorageError>,
}

impl RequestQueue {
    /// A queue of the device with this configuration, but for the capacity: that
    /// is the storage's, and may change.
    pub fn new(config: DeviceConfig, role: QueueRole, storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            parser: Parser::new(Limits::new(config), role),
            commands: Executor::default(),
            failure: None,
        }
    }

    /// Why the storage failed the request that was served last, where it did. The
    /// driver gets a status only; this is for the host's log. Taken once.
    pub const fn take_failure(&mut self) -> Option<StorageError> {
        self.failure.take()
    }

    /// Serves the chain at `head` to the end, its status included.
    ///
    /// `map_aperture` is called for [`Opcode::MapAperture`], which is the
    /// transport's to execute, and returns its status; `None` leaves the chain
    /// untouched, and nothing is written.
    ///
    /// # Errors
    ///
    /// Where the chain cannot be answered; the queue is then broken.
    pub fn serve<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        mem: &M,
        head: ChainHead,
        map_aperture: impl FnOnce() -> Option<RequestStatus>,
    ) -> Result<Option<Served>, QueueFault> {
        self.failure = None;
        let parsed = self.parser.parse(mem, head, self.storage.capacity())?;
        let storage = self.storage.as_ref();
        let (opcode, flags, status) = match parsed.request {
            Err(code) => (None, 0, RequestStatus { code, result: 0 }),
            Ok(request) => {
                let outcome = match request.header().opcode {
                    Opcode::Read => read(storage, mem, &request),
                    Opcode::Write => write(storage, mem, &request),
                    Opcode::Flush => Outcome::of(0, storage.flush()),
                    Opcode::Discard
                    | Opcode::WriteZeroes
                    | Opcode::Copy
                    | Opcode::Fill
                    | Opcode::Compare
                    | Opcode::Crc32c => self.commands.execute(storage, request.header()),
                    Opcode::MapAperture => match map_aperture() {
                        Some(status) => status.into(),
                        None => return Ok(None),
                    },
                };
                self.failure = outcome.failure;
                let header = request.header();
                (Some(header.opcode), header.flags, outcome.status)
            }
        };
        parsed.status.write(mem, status)?;

        let mut used = match opcode {
            Some(Opcode::Read) => status.result,
            _ => 0,
        };
        if used == parsed.writable {
            used += RequestStatus::SIZE as u64;
        }
        Ok(Some(Served {
            opcode,
            status,
            durable: flags & RequestHeader::FUA != 0 && status.code == StatusCode::Ok,
            used_len: u32::try_from(used).unwrap_or(u32::MAX),
        }))
    }
}

/// How a request ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For the driver.
    status: RequestStatus,
    /// For the host, where the storage is the reason.
    failure: Option<StorageError>,
}

impl Outcome {
    /// That of an operation on the storage whose status has this result, whether it
    /// ended well or not.
    pub(crate) fn of(result: u64, operation: Result<(), StorageError>) -> Self {
        let failure = operation.err();
        Self {
            status: RequestStatus {
                code: failure
                    .as_ref()
                    .map_or(StatusCode::Ok, StorageError::status),
                result,
            },
            failure,
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

/// Storage to data segments.
fn read<M: GuestMemory<Bitmap = ()>>(
    storage: &dyn Storage,
    mem: &M,
    request: &Request<'_>,
) -> Outcome {
    transfer(mem, request, Permissions::Write, |offset, slice| {
        storage.read(offset, slice)
    })
}

/// Data segments to storage.
fn write<M: GuestMemory<Bitmap = ()>>(
    storage: &dyn Storage,
    mem: &M,
    request: &Request<'_>,
) -> Outcome {
    let written = transfer(mem, request, Permissions::Read, |offset, slice| {
        storage.write(offset, slice)
    });
    let header = request.header();
    if written.status.code == StatusCode::Ok && header.flags & RequestHeader::FUA != 0 {
        return Outcome::of(
            written.status.result,
            storage.flush_range(header.offset, header.length),
        );
    }
    written
}

/// Walks the data segments in step with the storage. A segment is handed over
/// in one slice, or in one for each memory region it spans.
fn transfer<M: GuestMemory<Bitmap = ()>>(
    mem: &M,
    request: &Request<'_>,
    access: Permissions,
    mut copy: impl FnMut(u64, VolatileSlice<'_>) -> Result<(), StorageError>,
) -> Outcome {
    let mut done = 0;
    for segment in request.data() {
        // What was guest memory when the request was parsed may be none by now.
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
            if let Err(error) = copy(request.header().offset + done, slice) {
                return Outcome::of(done, Err(error));
            }
            done += length;
        }
    }
    Outcome::of(done, Ok(()))
}
