// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Draining a request queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringbar_model::storage::with_causes;
use ringbar_model::{ChainHead, QueueRole, RequestQueue, Served, StorageError};
use ringbar_spec::{Opcode, QueueFault, StatusCode};
use tracing::{debug, warn};
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::aperture::Aperture;
use crate::counters::Counts;
use crate::device::Device;
use crate::error::Error;
use crate::events::PendingEvents;
use crate::memory::RequestMemory;
use crate::moderation::Moderation;
use crate::ring::{Memory, Ring, is_started};

/// How long a batch goes on that has commands in it. They take long, and the
/// driver hears of those that are done at the end of the batch.
const MAX_BATCH_TIME: Duration = Duration::from_millis(5);

/// The same where the worker has other queues to serve, whatever is in the batch: they
/// wait meanwhile, and so do their interrupts that are held back.
const MAX_TURN: Duration = Duration::from_micros(100);

/// For which part of the time that a queue is looked at an interrupt may be held back;
/// less than 1, so that somebody is there to send it.
const HOLD_DIVISOR: u32 = 2;

/// What the workers of a connection share.
pub(crate) struct Shared {
    pub(crate) device: Arc<Device>,
    pub(crate) memory: RequestMemory,
    pub(crate) aperture: Aperture,
    pub(crate) events: Arc<PendingEvents>,
    /// Whether the connection ends: nothing more is served.
    ending: AtomicBool,
}

impl Shared {
    /// For a new connection of `device`, to which `events` belong.
    pub(crate) fn new(device: Arc<Device>, events: Arc<PendingEvents>) -> Result<Self, Error> {
        let layout = device.connect(&events)?;
        Ok(Self {
            memory: RequestMemory::new(device.storage().as_ref()),
            aperture: Aperture::new(layout, device.storage().clone()),
            events,
            device,
            ending: AtomicBool::new(false),
        })
    }

    /// Has the workers leave what is in the rings, after the request that each of
    /// them is at. None waits for the monitor any more.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.aperture.end();
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Whether the ring may be served.
    fn is_served(&self, ring: &Ring, vring: &VringState<Memory>) -> bool {
        !self.is_ending() && !ring.is_broken() && is_started(vring)
    }
}

/// How a batch ended.
enum Batch {
    /// There is nothing to do before what this says.
    Drained(Next),
    /// The aperture must be mapped before the next request can be answered.
    MapAperture,
}

/// How the worker serves its queues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// It goes on to look at empty rings, so that the driver need not kick.
    pub(crate) looking: bool,
    /// It has one queue only.
    pub(crate) alone: bool,
}

/// What a queue needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Next {
    /// Nothing: the ring is empty, and the driver will kick; or it is stopped.
    Wait,
    /// To be looked at: the ring is empty, and the driver does not kick.
    Look,
    /// To be served again: there may be more.
    Again,
}

struct State {
    requests: RequestQueue,
    moderation: Moderation,
}

/// Control queue or I/O queue.
pub(crate) struct Server {
    index: u16,
    state: Mutex<State>,
}

impl Server {
    pub(crate) fn new(index: u16, role: QueueRole, device: &Device) -> Self {
        // Control requests are rare.
        let poll = match role {
            QueueRole::Control => Duration::ZERO,
            QueueRole::Io => device.poll(),
        };
        Self {
            index,
            state: Mutex::new(State {
                requests: RequestQueue::new(device.config(), role, device.storage().clone()),
                moderation: Moderation::new(poll / HOLD_DIVISOR),
            }),
        }
    }

    /// Serves what is in the ring, at most one ring full. Called by the queue's worker
    /// only.
    pub(crate) fn serve(&self, shared: &Shared, ring: &Ring, turn: Turn) -> Next {
        let state = &mut *self.state();
        // Taken for one batch only, so that a message that stops the ring gets its turn.
        let mut vring = ring.get_mut();
        let mut counts = Counts {
            kicks: ring.take_kicks(),
            ..Counts::default()
        };
        let outcome = self.batch(shared, ring, &mut vring, state, &mut counts, turn);
        if !matches!(outcome, Ok(Batch::Drained(Next::Look))) {
            state.moderation.stop(ring, &vring);
        }
        if let Err(fault) = outcome {
            ring.set_broken();
            shared.events.queue_broken(self.index, fault, ring);
            counts.broken_queues = 1;
            warn!(
                queue = self.index,
                ?fault,
                "driver broke a queue: not served until it resets the device"
            );
        }
        drop(vring);
        shared.device.counters().add(&counts);
        match outcome {
            Ok(Batch::Drained(next)) => next,
            Ok(Batch::MapAperture) => {
                shared.aperture.map();
                Next::Again
            }
            Err(_) => Next::Wait,
        }
    }

    /// Whether there is a request in the ring; `None` where the ring is not to be
    /// served any more, or not as it is. Looks after the interrupt meanwhile.
    pub(crate) fn look(&self, shared: &Shared, ring: &Ring, now: Instant) -> Option<bool> {
        let mut state = self.state();
        let vring = ring.get_mut();
        if !shared.is_served(ring, &vring) {
            return None;
        }
        let guard = shared.memory.get();
        let mem: &GuestMemoryMmap = &guard;
        let mut counts = Counts::default();
        let checked = state.moderation.check(now, ring, &vring, mem, &mut counts);
        if counts.interrupts > 0 {
            shared.device.counters().add(&counts);
        }
        checked.ok()?;
        let queue = vring.get_queue();
        let index = queue.avail_idx(mem, Ordering::Acquire).ok()?;
        Some(index.0 != queue.next_avail())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Contended by nobody; a poisoned parser is as good as a new one, it
        // starts each chain afresh.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what is in the ring, at most one ring full, and notifies the
    /// driver once.
    fn batch(
        &self,
        shared: &Shared,
        ring: &Ring,
        vring: &mut VringState<Memory>,
        state: &mut State,
        counts: &mut Counts,
        turn: Turn,
    ) -> Result<Batch, QueueFault> {
        if !shared.is_served(ring, vring) {
            return Ok(Batch::Drained(Next::Wait));
        }
        let guard = shared.memory.get();
        let mem: &GuestMemoryMmap = &guard;
        if mem.num_regions() == 0 {
            warn!(
                queue = self.index,
                "kick without guest memory: {}",
                crate::backend::SHARE_MEMORY
            );
            return Ok(Batch::Drained(Next::Wait));
        }

        if !ring.is_valid(vring, mem) {
            return Err(QueueFault::Ring);
        }
        let queue = vring.get_queue_mut();
        queue
            .disable_notification(mem)
            .map_err(|_| QueueFault::Ring)?;
        // A message that waits for the ring, and the end of the connection, wait for
        // one request.
        let must_leave = |start: Instant| {
            ring.is_wanted() || shared.is_ending() || !turn.alone && start.elapsed() > MAX_TURN
        };
        let drained = self.drain(shared, queue, mem, &mut state.requests, counts, must_leave);
        let may_hold = turn.looking && matches!(drained, Ok(true));
        state
            .moderation
            .served(may_hold, ring, vring, mem, counts)?;
        if !drained? {
            return Ok(Batch::MapAperture);
        }
        if turn.looking {
            return Ok(Batch::Drained(Next::Look));
        }
        match vring.get_queue_mut().enable_notification(mem) {
            Ok(true) => Ok(Batch::Drained(Next::Again)),
            Ok(false) => Ok(Batch::Drained(Next::Wait)),
            Err(_) => Err(QueueFault::Ring),
        }
    }

    /// Serves at most one ring full of requests, and fewer if there are long
    /// commands among them, or the worker must leave the queue, which is asked after
    /// each with the time of the start. Returns false where the next one needs the
    /// aperture to be mapped.
    fn drain(
        &self,
        shared: &Shared,
        queue: &mut Queue,
        mem: &GuestMemoryMmap,
        requests: &mut RequestQueue,
        counts: &mut Counts,
        must_leave: impl Fn(Instant) -> bool,
    ) -> Result<bool, QueueFault> {
        let start = Instant::now();
        for _ in 0..queue.size() {
            // An available index that is ahead by more than the ring is an error
            // of the iterator, and ends here.
            let Some(chain) = queue.iter(mem).map_err(|_| QueueFault::Ring)?.next() else {
                break;
            };
            let head = ChainHead {
                table: GuestAddress(queue.desc_table()),
                queue_size: queue.size(),
                index: chain.head_index(),
            };
            let Some(served) = requests.serve(mem, head, || shared.aperture.answer())? else {
                queue.go_to_previous_position();
                return Ok(false);
            };
            queue
                .add_used(mem, head.index, served.used_len)
                .map_err(|_| QueueFault::Ring)?;
            if let Some(error) = requests.take_failure() {
                self.report(&error, served.opcode);
            }
            self.count(&served, counts);
            let is_command = served.opcode.is_some_and(Opcode::is_command);
            if must_leave(start) || is_command && start.elapsed() > MAX_BATCH_TIME {
                break;
            }
        }
        Ok(true)
    }

    /// Says why the storage failed a request. The driver, which gets a status only, can
    /// bring about as many of these as it likes; the log has a limit for each message.
    fn report(&self, error: &StorageError, opcode: Option<Opcode>) {
        match error {
            // It was about to become smaller, which is no failure.
            StorageError::OutOfRange { .. } => {
                debug!(queue = self.index, ?opcode, "request failed: {error}");
            }
            _ => warn!(
                queue = self.index,
                ?opcode,
                "request failed: {}",
                with_causes(error)
            ),
        }
    }

    fn count(&self, served: &Served, counts: &mut Counts) {
        counts.requests += 1;
        counts.durable_writes += u64::from(served.durable);
        let done = served.status.result;
        match (served.status.code, served.opcode) {
            (StatusCode::Ok, Some(Opcode::Read)) => {
                counts.reads += 1;
                counts.bytes_read += done;
            }
            (StatusCode::Ok, Some(Opcode::Write)) => {
                counts.writes += 1;
                counts.bytes_written += done;
            }
            (StatusCode::Ok, Some(Opcode::Flush)) => counts.flushes += 1,
            (StatusCode::Ok, Some(Opcode::Discard)) => counts.discards += 1,
            (StatusCode::Ok, Some(Opcode::WriteZeroes)) => counts.write_zeroes += 1,
            (StatusCode::Ok, Some(Opcode::Copy)) => counts.copies += 1,
            (StatusCode::Ok, Some(Opcode::Fill)) => counts.fills += 1,
            (StatusCode::Ok, Some(Opcode::Compare)) => counts.compares += 1,
            (StatusCode::Ok, Some(Opcode::Crc32c)) => counts.checksums += 1,
            (StatusCode::Ok, Some(Opcode::MapAperture) | None) => {}
            (code, opcode) => {
                counts.errors += 1;
                debug!(queue = self.index, ?opcode, ?code, "request failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU16;
    use std::thread;

    use ringbar_spec::Event;

    use super::*;
    use crate::testing::{HookedStorage, QUEUE, TestQueue, wait_until};

    const ALONE: Turn = Turn {
        looking: false,
        alone: true,
    };

    /// A queue that calls `act` within its `at`th flush.
    fn queue(at: u16, act: impl Fn(&TestQueue) + Send + Sync + 'static) -> Arc<TestQueue> {
        let queue: Arc<OnceLock<Arc<TestQueue>>> = Arc::default();
        let (flushes, other) = (AtomicU16::new(0), Arc::clone(&queue));
        let mut storage = HookedStorage::new(4096);
        storage.on_flush = Box::new(move || {
            if flushes.fetch_add(1, Ordering::Relaxed) + 1 == at {
                act(other.get().unwrap());
            }
        });
        Arc::clone(queue.get_or_init(|| Arc::new(TestQueue::new(Arc::new(storage)))))
    }

    fn serve(queue: &TestQueue, turn: Turn) -> Next {
        queue.server.serve(&queue.shared, &queue.ring, turn)
    }

    #[test]
    fn ho4_a_stop_waits_for_one_request() {
        let queue = queue(3, |queue| {
            let ring = queue.ring.clone();
            thread::spawn(move || ring.set_queue_ready(false));
            wait_until("the ring is wanted", || queue.ring.is_wanted());
        });
        queue.put_flushes(20);
        assert_eq!(serve(&queue, ALONE), Next::Again);
        assert_eq!(queue.used(), 3);
        assert_eq!(serve(&queue, ALONE), Next::Wait);
        assert_eq!(queue.used(), 3);

        // And then it goes on where it was.
        queue.ring.set_queue_ready(true);
        assert_eq!(serve(&queue, ALONE), Next::Wait);
        assert_eq!(queue.used(), 20);
    }

    #[test]
    fn ho5_the_end_of_the_connection_waits_for_one_request() {
        for looking in [false, true] {
            let queue = queue(3, |queue| queue.shared.end());
            queue.put_flushes(20);
            let turn = Turn { looking, ..ALONE };
            serve(&queue, turn);
            assert_eq!(queue.used(), 3);
            let look = queue
                .server
                .look(&queue.shared, &queue.ring, Instant::now());
            assert_eq!(look, None);
            assert_eq!(serve(&queue, turn), Next::Wait);
            assert_eq!(queue.used(), 3);
        }
    }

    /// The driver does not kick for what was there before the device asked for kicks.
    #[test]
    fn requests_that_are_left_when_kicks_are_asked_for_are_served() {
        let queue = queue(1, |_| {
            let start = Instant::now();
            while start.elapsed() <= MAX_TURN {
                std::hint::spin_loop();
            }
        });
        queue.put_flushes(2);
        let turn = Turn {
            alone: false,
            ..ALONE
        };
        assert_eq!(serve(&queue, turn), Next::Again);
        assert_eq!(queue.used(), 1);
        while serve(&queue, turn) == Next::Again {}
        assert_eq!(queue.used(), 2);
    }

    #[test]
    fn a_ring_of_an_impossible_size_is_a_broken_queue() {
        let queue = queue(0, |_| ());
        queue.put_flushes(1);
        queue.ring.set_queue_size(48);
        assert_eq!(serve(&queue, ALONE), Next::Wait);
        assert_eq!(queue.used(), 0);
        let event = Event::QueueBroken {
            queue: QUEUE,
            fault: QueueFault::Ring,
        };
        assert_eq!(queue.shared.events.front(), Some(event));
    }
}
