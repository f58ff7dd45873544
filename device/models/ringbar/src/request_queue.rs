// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Execution of the requests of one queue without an engine, for devices with a loop of their
//! own and for tests.

use std::sync::Arc;

use ringbar_engine::Chain;
use ringbar_engine::chain::ChainHead;
use ringbar_spec::{DeviceConfig, Opcode, QueueFault, RequestHeader, RequestStatus, StatusCode};
use ringbar_storage::{Storage, StorageError};
use vm_memory::GuestMemory;

use crate::events::queue_fault;
use crate::executor::{Executed, Executor, Outcome, after_flush, write_status};
use crate::request::{Limits, ParsedChain, QueueRole};

/// A completed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The opcode; `None` where the request was refused.
    pub opcode: Option<Opcode>,
    /// The status that was written.
    pub status: RequestStatus,
    /// Whether the request had [`RequestHeader::FUA`] and succeeded, so its data is durable.
    pub durable: bool,
    /// Length for the used ring in bytes (VIRTIO 1.3, 2.7.8.2).
    pub used_len: u32,
}

/// Executes the requests of one queue on a storage, one after the other.
#[derive(Debug)]
pub struct RequestQueue {
    executor: Executor,
    limits: Limits,
    role: QueueRole,
    chain: Chain,
    parsed: ParsedChain,
    failure: Option<StorageError>,
}

impl RequestQueue {
    /// A queue of a device with this configuration. The capacity is that of the storage, because
    /// it can change.
    pub fn new(config: DeviceConfig, role: QueueRole, storage: Arc<dyn Storage>) -> Self {
        let limits = Limits::new(config);
        Self {
            executor: Executor::new(storage),
            chain: Chain::with_limit(limits.max_buffers()),
            limits,
            role,
            parsed: ParsedChain::default(),
            failure: None,
        }
    }

    /// Takes the error of the storage that failed the last completed request, if any.
    pub const fn take_failure(&mut self) -> Option<StorageError> {
        self.failure.take()
    }

    /// Executes the request at `head` and writes its status.
    ///
    /// The caller executes [`Opcode::MapAperture`] in `map_aperture`, which returns the status.
    /// With `None` nothing is written.
    ///
    /// # Errors
    ///
    /// The chain has no valid place for a status; the queue is then broken.
    pub fn process<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        mem: &M,
        head: ChainHead,
        map_aperture: impl FnOnce() -> Option<RequestStatus>,
    ) -> Result<Option<Completed>, QueueFault> {
        self.failure = None;
        self.chain.read(mem, head).map_err(queue_fault)?;
        let capacity = self.executor.storage().capacity();
        let parsed = self
            .parsed
            .parse(&self.limits, self.role, mem, self.chain.buffers(), capacity)
            .map_err(queue_fault)?;
        let outcome = match parsed {
            Err(code) => Outcome::refused(code),
            Ok(()) if self.opcode() == Some(Opcode::MapAperture) => match map_aperture() {
                Some(status) => status.into(),
                None => return Ok(None),
            },
            Ok(()) => self.execute(mem),
        };
        let status = outcome.status;
        self.failure = outcome.failure;
        let used_len = write_status(mem, &self.parsed, status).map_err(queue_fault)?;
        let flags = self.parsed.header().map_or(0, |header| header.flags);
        Ok(Some(Completed {
            opcode: self.opcode(),
            status,
            durable: flags & RequestHeader::FUA != 0 && status.code == StatusCode::Ok,
            used_len,
        }))
    }

    fn opcode(&self) -> Option<Opcode> {
        self.parsed.header().map(|header| header.opcode)
    }

    fn execute<M: GuestMemory<Bitmap = ()>>(&mut self, mem: &M) -> Outcome {
        loop {
            match self.executor.step(mem, &mut self.parsed) {
                Executed::More => {}
                Executed::Done(outcome) => return outcome,
                Executed::Flush(result, flush) => {
                    let flushed = flush.execute(self.executor.storage().as_ref());
                    return after_flush(self.parsed.header(), result, flushed);
                }
            }
        }
    }
}
