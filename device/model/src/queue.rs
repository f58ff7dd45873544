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
}

impl RequestQueue {
    /// A queue of the device with this configuration, but for the capacity: that
    /// is the storage's, and may change.
    pub fn new(config: DeviceConfig, role: QueueRole, storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            parser: Parser::new(Limits::new(config), role),
            commands: Executor::default(),
        }
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
        let parsed = self.parser.parse(mem, head, self.storage.capacity())?;
        let (opcode, flags, status) = match parsed.request {
            Err(code) => (None, 0, RequestStatus { code, result: 0 }),
            Ok(request) => {
                let status = match request.header().opcode {
                    Opcode::Read => read(self.storage.as_ref(), mem, &request),
                    Opcode::Write => write(self.storage.as_ref(), mem, &request),
                    Opcode::Flush => status(0, self.storage.flush()),
                    Opcode::Discard
                    | Opcode::WriteZeroes
                    | Opcode::Copy
                    | Opcode::Fill
                    | Opcode::Compare
                    | Opcode::Crc32c => self
                        .commands
                        .execute(self.storage.as_ref(), request.header()),
                    Opcode::MapAperture => match map_aperture() {
                        Some(status) => status,
                        None => return Ok(None),
                    },
                };
                let header = request.header();
                (Some(header.opcode), header.flags, status)
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

/// Storage to data segments.
fn read<M: GuestMemory<Bitmap = ()>>(
    storage: &dyn Storage,
    mem: &M,
    request: &Request<'_>,
) -> RequestStatus {
    transfer(mem, request, Permissions::Write, |offset, slice| {
        storage.read(offset, slice)
    })
}

/// Data segments to storage.
fn write<M: GuestMemory<Bitmap = ()>>(
    storage: &dyn Storage,
    mem: &M,
    request: &Request<'_>,
) -> RequestStatus {
    let written = transfer(mem, request, Permissions::Read, |offset, slice| {
        storage.write(offset, slice)
    });
    let header = request.header();
    if written.code == StatusCode::Ok && header.flags & RequestHeader::FUA != 0 {
        return status(
            written.result,
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
) -> RequestStatus {
    let mut done = 0;
    let mut walk = || -> Result<(), StatusCode> {
        for segment in request.data() {
            let slices = mem
                .get_slices(segment.addr, segment.len as usize, access)
                .map_err(|_| StatusCode::Invalid)?;
            for slice in slices {
                let slice = slice.map_err(|_| StatusCode::Invalid)?;
                let length = slice.len() as u64;
                copy(request.header().offset + done, slice).map_err(|error| error.status())?;
                done += length;
            }
        }
        Ok(())
    };
    let code = walk().err().unwrap_or(StatusCode::Ok);
    RequestStatus { code, result: done }
}

fn status(result: u64, outcome: Result<(), StorageError>) -> RequestStatus {
    RequestStatus {
        code: outcome.err().map_or(StatusCode::Ok, |error| error.status()),
        result,
    }
}
