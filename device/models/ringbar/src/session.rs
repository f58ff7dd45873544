// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device on one connection, as the engine runs it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use ringbar_engine::model::{ConfigListener, Mapper, SharedFile, SharedRegion};
use ringbar_engine::{DeviceModel, Fault};
use ringbar_faults::OPERATIONS;
use ringbar_spec::{CONTROL_QUEUE, EVENT_QUEUE, FIRST_IO_QUEUE, Opcode, StatusCode};
use ringbar_storage::{AsyncStorage, StorageError, with_causes};
use rustix::fs::fstat;
use tracing::{debug, info, warn};
use vm_memory::GuestMemory;

use crate::aperture::Aperture;
use crate::asynchronous::{self, AsyncExecutor};
use crate::command::is_unrepeatable;
use crate::counters::RequestCounts;
use crate::delay::Delayer;
use crate::device::Device;
use crate::error::Error;
use crate::events::{self, Events, queue_fault};
use crate::executor::{Executed, Executor, Outcome, after_flush, write_status};
use crate::injection;
use crate::request::{Limits, ParsedChain, QueueRole};
use crate::response::{Request, Response, Submission};

/// Names of the operations of I/O requests.
const OPERATION_NAMES: [&str; OPERATIONS.len()] = {
    let mut names = [""; OPERATIONS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = OPERATIONS[index].1;
        index += 1;
    }
    names
};

/// Working memory of one queue.
#[derive(Debug)]
pub struct QueueState {
    index: u16,
    executor: Executor,
    /// Executor of an asynchronous storage.
    asynchronous: Option<AsyncExecutor>,
    /// Counts since the end of the last batch, not yet added to those of the device.
    counts: RequestCounts,
}

/// The device on one connection.
#[derive(Debug)]
pub struct Session {
    device: Arc<Device>,
    limits: Limits,
    io_queues: u16,
    events: Arc<Events>,
    aperture: Arc<Aperture>,
    /// The asynchronous interface of the storage, if it has one.
    face: Option<Arc<dyn AsyncStorage>>,
    /// Requests that rules delay.
    delayer: Delayer,
    /// File that holds the device memory: device and inode number.
    own_file: Option<(u64, u64)>,
}

impl Session {
    /// Begins a connection.
    ///
    /// # Errors
    ///
    /// [`Error::ApertureSize`] where the device memory has become too large for a shared memory
    /// region.
    pub fn new(device: Arc<Device>) -> Result<Self, Error> {
        let events = Arc::<Events>::default();
        let layout = device.connect(&events)?;
        let config = device.config();
        let storage = Arc::clone(device.storage());
        Ok(Self {
            limits: Limits::new(config),
            io_queues: config.io_queues(),
            own_file: storage.mappable().and_then(|own| file_id(own.file)),
            face: storage.asynchronous(),
            delayer: Delayer::new(device.threads().clone()),
            aperture: Arc::new(Aperture::new(layout, storage)),
            events,
            device,
        })
    }

    /// Counters for the engine that runs this device.
    pub fn queue_counters(&self) -> &Arc<ringbar_engine::Counters> {
        self.device.queue_counters()
    }

    fn submit_request<M: GuestMemory<Bitmap = ()>>(
        &self,
        queue: &mut QueueState,
        memory: &M,
        mut request: Request,
    ) -> Submission {
        if !request.is_resumed() {
            let role = match queue.index {
                CONTROL_QUEUE => QueueRole::Control,
                _ => QueueRole::Io,
            };
            let capacity = queue.executor.storage().capacity();
            let (buffers, parsed) = request.parts();
            match parsed.parse(&self.limits, role, memory, buffers, capacity) {
                Err(fault) => return Submission::Fault(request, fault),
                Ok(Err(code)) => return completed(request, Outcome::refused(code)),
                Ok(Ok(())) => {}
            }
            let opcode = request.scratch().header().map(|header| header.opcode);
            if opcode == Some(Opcode::MapAperture) {
                return match Aperture::map(&self.aperture, request) {
                    Some((request, response)) => Submission::Completed(request, response),
                    None => Submission::Deferred,
                };
            }
        }
        if !request.is_resumed() && self.device.faults().is_active() {
            match self.inject(queue.index, request) {
                Some(same) => request = same,
                None => return Submission::Deferred,
            }
        }
        if let Some(errno) = request.scratch().faults.error {
            return completed(request, Outcome::refused(injection::status_code(errno)));
        }
        // A request that waits may be submitted anew.
        let repeatable =
            |request: &Request| !request.scratch().header().is_some_and(is_unrepeatable);
        if let Some(asynchronous) = &queue.asynchronous
            && repeatable(&request)
        {
            return asynchronous.step(memory, request);
        }
        if !repeatable(&request) && !request.begin_once() {
            warn!(
                queue = queue.index,
                "a copy between overlapping ranges fails: another process ended while it executed it"
            );
            return completed(request, Outcome::refused(StatusCode::IoError));
        }
        let (_, parsed) = request.parts();
        match queue.executor.step(memory, parsed) {
            Executed::Done(outcome) => completed(request, outcome),
            Executed::More => Submission::Yielded(request),
            Executed::Flush(result, flush) => {
                let storage = queue.executor.storage();
                if !repeatable(&request) || !storage.flush_waits() {
                    let flushed = flush.execute(storage.as_ref());
                    let outcome = after_flush(request.scratch().header(), result, flushed);
                    return completed(request, outcome);
                }
                self.device.flusher().flush(flush, move |flushed| {
                    let outcome = after_flush(request.scratch().header(), result, flushed);
                    request.complete(Response::Status(outcome));
                });
                Submission::Deferred
            }
        }
    }
}

impl Session {
    /// Finds out what the rules do to a new request. Returns it, unless they delay it: it is
    /// resumed then.
    #[cold]
    #[inline(never)]
    fn inject(&self, queue: u16, mut request: Request) -> Option<Request> {
        let (_, parsed) = request.parts();
        let faults = match parsed.header() {
            Some(header) => self
                .device
                .faults()
                .faults_of(&injection::access(queue, header)),
            None => return Some(request),
        };
        parsed.faults = faults;
        if faults.is_short {
            parsed.shorten();
        }
        let Some(latency) = faults.latency else {
            return Some(request);
        };
        self.delayer.delay(queue, latency, move || request.resume());
        None
    }
}

fn completed(request: Request, outcome: Outcome) -> Submission {
    Submission::Completed(request, Response::Status(outcome))
}

impl DeviceModel for Session {
    type Queue = QueueState;
    type Scratch = ParsedChain;
    type Outcome = Response;

    /// The names that rules for faults have for them.
    const OPERATIONS: &'static [&'static str] = &OPERATION_NAMES;

    fn operation(&self, request: &Request) -> Option<usize> {
        let opcode = request.scratch().header()?.opcode;
        OPERATIONS.iter().position(|(known, _)| *known == opcode)
    }

    fn queue_count(&self) -> u16 {
        FIRST_IO_QUEUE + self.io_queues
    }

    /// I/O queues only: requests of the control queue are rare, and a buffer of the event queue
    /// waits until the device has an event.
    fn is_polled(&self, queue: u16) -> bool {
        queue >= FIRST_IO_QUEUE
    }

    fn max_buffers(&self, queue: u16) -> usize {
        match queue {
            EVENT_QUEUE => events::MAX_BUFFERS,
            _ => self.limits.max_buffers(),
        }
    }

    fn queue(&self, queue: u16) -> QueueState {
        QueueState {
            index: queue,
            executor: Executor::new(Arc::clone(self.device.storage())),
            asynchronous: (self.face.clone()).map(|face| AsyncExecutor::new(face, queue)),
            counts: RequestCounts::default(),
        }
    }

    fn submit<M: GuestMemory<Bitmap = ()>>(
        &self,
        queue: &mut QueueState,
        memory: &M,
        request: Request,
    ) -> Submission {
        match queue.index {
            EVENT_QUEUE => self.events.add_buffer(request),
            _ => self.submit_request(queue, memory, request),
        }
    }

    fn finish<M: GuestMemory<Bitmap = ()>>(
        &self,
        queue: &mut QueueState,
        memory: &M,
        request: &mut Request,
        response: Response,
    ) -> Result<u32, Fault> {
        let mut outcome = match response {
            Response::Event(event) => {
                let length = events::write(memory, request, event)?;
                self.events.delivered(event);
                queue.counts.events += 1;
                return Ok(length);
            }
            Response::Status(outcome) => outcome,
        };
        if queue.asynchronous.is_some() {
            outcome.status = asynchronous::copy_out(memory, request.parts().1, outcome.status);
        }
        let parsed = request.scratch();
        if parsed.faults.is_short && outcome.status.code == StatusCode::Ok {
            outcome.status.code = StatusCode::IoError;
        }
        if outcome.failure.is_some() {
            self.device.request_failed();
        }
        let length = write_status(memory, parsed, outcome.status)?;
        let opcode = parsed.header().map(|header| header.opcode);
        if let Some(error) = &outcome.failure {
            report(queue.index, error, opcode);
        }
        let code = outcome.status.code;
        if code != StatusCode::Ok {
            debug!(queue = queue.index, ?opcode, ?code, "request failed");
        }
        queue.counts.count(parsed.header(), outcome.status);
        Ok(length)
    }

    fn dropped(&self) -> Response {
        Response::Status(Outcome::refused(StatusCode::IoError))
    }

    fn batch_done(&self, queue: &mut QueueState) {
        self.device.counters(queue.index).add(&queue.counts);
        queue.counts = RequestCounts::default();
    }

    fn queue_started(&self, queue: u16) {
        self.events.queue_started(queue);
    }

    fn queue_stopped(&self, queue: u16) {
        if let Some(face) = &self.face {
            face.cancel(asynchronous::owner(queue));
        }
        self.delayer.cancel(queue);
        match queue {
            EVENT_QUEUE => self.events.queue_stopped(),
            CONTROL_QUEUE => self.aperture.device_stopped(),
            _ => {}
        }
    }

    fn queue_broken(&self, queue: u16, fault: Fault) {
        // A broken event queue cannot carry the event about itself.
        if queue != EVENT_QUEUE {
            self.events.queue_broken(queue, queue_fault(fault));
        }
    }

    fn config(&self) -> Vec<u8> {
        self.device.config().to_bytes().to_vec()
    }

    fn reset(&self) {
        info!("device reset");
        self.aperture.device_stopped();
        self.events.clear();
    }

    fn shared_region(&self) -> Option<SharedRegion> {
        Some(self.aperture.region())
    }

    fn shared_file(&self) -> Option<SharedFile> {
        self.aperture.file()
    }

    fn set_config_listener(&self, listener: ConfigListener) {
        self.events.set_config_listener(listener);
    }

    fn owns(&self, file: &File) -> bool {
        self.own_file.is_some() && file_id(file) == self.own_file
    }

    fn set_mapper(&self, mapper: Arc<dyn Mapper>) {
        self.aperture.set_mapper(mapper);
    }

    fn unmapped(&self) {
        self.aperture.device_stopped();
    }
}

fn file_id(file: impl AsFd) -> Option<(u64, u64)> {
    fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Logs why the storage failed a request; the driver gets a status code only. A guest can
/// provoke any number of these messages, so the log limits the rate of each message.
fn report(queue: u16, error: &StorageError, opcode: Option<Opcode>) {
    match error {
        // The device was shrunk after the request was parsed; the storage has not failed.
        StorageError::OutOfRange { .. } => {
            debug!(queue, ?opcode, "request failed: {error}");
        }
        _ => warn!(queue, ?opcode, "request failed: {}", with_causes(error)),
    }
}
