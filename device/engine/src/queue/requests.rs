// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The way of requests through a queue: from the ring to the model, and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};
use vm_memory::GuestMemory;

use super::{Context, Queue, QueueStatus};
use crate::chain::Chain;
use crate::counters::Counts;
use crate::fault::Fault;
use crate::in_flight::Entry;
use crate::injection::{Injection, UsedFault};
use crate::model::{DeviceModel, RequestOf, ReturnedOf};
use crate::request::{Body, Request, Return, Submission};
use crate::ring::Ring;

/// For how long a worker processes one of several queues before it goes on to the next: the
/// others wait meanwhile, and so do their delayed interrupts.
const MAX_TURN: Duration = Duration::from_micros(100);

/// For how long a worker with a single queue processes a batch. The driver hears of the
/// requests of a batch at its end.
const MAX_BATCH: Duration = Duration::from_millis(5);

/// A worker with a single queue reads the clock once for so many requests, and the latency of one
/// of so many is measured.
const CLOCK_INTERVAL: u32 = 16;

impl<D: DeviceModel, M: GuestMemory> Context<'_, D, M> {
    /// Whether a queue has had its time, which `clock` has measured, after so many requests.
    fn is_over(&self, clock: &mut Clock, requests: u32) -> bool {
        match self.single {
            true => requests.is_multiple_of(CLOCK_INTERVAL) && clock.elapsed() > MAX_BATCH,
            false => clock.elapsed() > MAX_TURN,
        }
    }
}

/// The time within a batch. The end of a request is the beginning of the next one, so one reading
/// of the clock serves both.
struct Clock {
    start: Instant,
    /// When the clock was read, unless time has passed since.
    now: Option<Instant>,
}

impl Clock {
    fn start() -> Self {
        let start = Instant::now();
        Self {
            start,
            now: Some(start),
        }
    }

    fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    fn elapsed(&mut self) -> Duration {
        self.now().saturating_duration_since(self.start)
    }

    /// Time passes.
    const fn expire(&mut self) {
        self.now = None;
    }
}

impl<D: DeviceModel> Queue<D> {
    /// Processes at most one ring full of requests, and interrupts the driver once.
    pub(crate) fn process<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        context: &Context<'_, D, M>,
    ) -> QueueStatus {
        if !self.runs() {
            return QueueStatus::Stopped;
        }
        let mut counts = Counts {
            kicks: self.take_kicks(),
            ..Counts::default()
        };
        let status = self.batch(context, &mut counts);
        context.model.batch_done(&mut self.model);
        let status = status.unwrap_or_else(|fault| self.fail(context.model, fault, &mut counts));
        self.counters.add(&counts);
        self.publish_in_flight();
        status
    }

    /// The driver broke the queue.
    fn fail(&mut self, model: &D, fault: Fault, counts: &mut Counts) -> QueueStatus {
        warn!(
            queue = self.index,
            ?fault,
            "driver broke a queue: not processed until it resets the device"
        );
        counts.broken_queues += 1;
        self.set_broken(model, fault);
        QueueStatus::Stopped
    }

    fn batch<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        context: &Context<'_, D, M>,
        counts: &mut Counts,
    ) -> Result<QueueStatus, Fault> {
        self.ring.validate(context.memory)?;
        self.ring.disable_doorbell(context.memory)?;
        let processed = self.submit_available(context, counts);
        // Also for what was used before a fault.
        let may_delay = context.polling && matches!(processed, Ok(QueueStatus::Empty));
        counts.interrupts += self.moderation.batch_done(
            may_delay,
            counts.requests > 0,
            &mut self.ring,
            context.memory,
            &self.interrupt,
        )?;
        processed
    }

    /// Submits what is available, until the worker must leave the queue.
    fn submit_available<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        context: &Context<'_, D, M>,
        counts: &mut Counts,
    ) -> Result<QueueStatus, Fault> {
        let mut clock = Clock::start();
        let mut deferred = false;
        for number in 1..=u32::from(self.ring.size()) {
            // Where the worker has read the clock in any case, or the request takes much longer.
            let is_timed = number % CLOCK_INTERVAL == 1 || deferred;
            let taken = is_timed.then(|| clock.now());
            let Some(request) = self.next_request(context, taken)? else {
                return Ok(QueueStatus::Empty);
            };
            clock.expire();
            deferred = false;
            let entry = request.entry();
            let submission = context
                .model
                .submit(&mut self.model, context.memory, request);
            match submission {
                Submission::Completed(request, outcome)
                    if request.is(self.index, self.run, entry) =>
                {
                    self.finish(context, request, outcome, &mut clock)?;
                    counts.requests += 1;
                }
                // One that was deferred before, in exchange for this one.
                Submission::Completed(other, outcome) => {
                    self.in_flight.defer(entry);
                    other.complete(outcome);
                }
                Submission::Deferred => {
                    self.in_flight.defer(entry);
                    deferred = true;
                }
                Submission::Yielded(mut request) => {
                    request.body_mut().resumed = true;
                    self.yielded = Some(request);
                    return Ok(QueueStatus::More);
                }
                Submission::Fault(request, fault) => {
                    self.recycle(request);
                    return Err(fault);
                }
            }
            if context.mailbox.has_mail() || context.is_over(&mut clock, number) {
                break;
            }
        }
        Ok(QueueStatus::More)
    }

    /// The request to submit next. One that is new was taken at the time `taken`, if its latency is
    /// measured.
    fn next_request<M: GuestMemory>(
        &mut self,
        context: &Context<'_, D, M>,
        taken: Option<Instant>,
    ) -> Result<Option<RequestOf<D>>, Fault> {
        if let Some(request) = self.yielded.take().or_else(|| self.resumed.pop_front()) {
            return Ok(Some(request));
        }
        if self.is_stalled(context.memory)? {
            return Ok(None);
        }
        let entry = match self.in_flight.next_interrupted() {
            Some(entry) => entry,
            None => match self.ring.pop(context.memory)? {
                Some(head) => self.in_flight.take(head),
                None => return Ok(None),
            },
        };
        // Each chain in flight has at least one descriptor of its own (VIRTIO 1.3, 2.7.13).
        let kept = self.in_flight.deferred() + self.resumed.len();
        if kept >= usize::from(self.ring.size()) {
            return Err(Fault::Ring);
        }
        let mut body = self.spare.pop().unwrap_or_else(|| {
            Box::new(Body {
                queue: self.index,
                run: 0,
                entry: Entry::default(),
                taken,
                chain: Chain::with_limit(self.max_buffers),
                scratch: D::Scratch::default(),
                resumed: false,
                record: self.in_flight.record().cloned(),
                mailbox: Arc::clone(context.mailbox),
            })
        });
        body.entry = entry;
        body.taken = taken;
        body.run = self.run;
        body.resumed = false;
        let read = body.chain.read(context.memory, self.ring.head(entry.head));
        if let Err(fault) = read {
            self.spare.push(body);
            return Err(fault);
        }
        Ok(Some(Request::new(body)))
    }

    /// Whether a fault keeps the queue from taking its next entry.
    #[inline]
    fn is_stalled<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Fault> {
        match self.stalled.is_some() || self.faults.active().is_some() {
            true => self.update_stalled(memory),
            false => Ok(false),
        }
    }

    #[cold]
    fn update_stalled<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Fault> {
        self.stalled = self.stalled.filter(|fault| self.faults.persists(*fault));
        if self.stalled.is_none()
            && let Some(injector) = self.faults.active()
            && (self.in_flight.has_interrupted() || self.ring.has_available(memory)?)
        {
            self.stalled = injector.stall(self.index);
        }
        Ok(self.stalled.is_some())
    }

    fn finish<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        context: &Context<'_, D, M>,
        mut request: RequestOf<D>,
        outcome: D::Outcome,
        clock: &mut Clock,
    ) -> Result<(), Fault> {
        // Before the device may change the request.
        let measured = request.taken().and_then(|taken| {
            let operation = context.model.operation(&request)?;
            Some((operation, taken))
        });
        let length = context
            .model
            .finish(&mut self.model, context.memory, &mut request, outcome);
        let entry = request.entry();
        let (ring, faults, queue) = (&mut self.ring, &self.faults, self.index);
        let used = length.and_then(|length| {
            self.in_flight.use_entry(entry, || {
                push_used(ring, faults, queue, context.memory, entry.head, length)?;
                Ok(ring.next_used())
            })
        });
        if let Some((operation, taken)) = measured {
            self.record_latency(operation, clock.now().saturating_duration_since(taken));
        }
        self.recycle(request);
        used
    }

    #[cold]
    fn record_latency(&self, operation: usize, latency: Duration) {
        if let Some(histogram) = self.counters.latency(operation) {
            histogram.record(latency);
        }
    }

    fn recycle(&mut self, request: RequestOf<D>) {
        self.spare.push(request.into_body());
    }

    /// Takes back requests that were completed or resumed elsewhere, and interrupts the driver
    /// once. Leaves those for which there is no time: somebody waits for an answer to mail, or
    /// other queues do.
    pub(crate) fn complete<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        context: &Context<'_, D, M>,
        completions: impl Iterator<Item = ReturnedOf<D>>,
    ) {
        let mut completions = completions;
        let Some(first) = completions.next() else {
            return;
        };
        let completions = std::iter::once(first).chain(completions);
        let mut counts = Counts::default();
        let finished = self.finish_all(context, completions, &mut counts);
        context.model.batch_done(&mut self.model);
        if let Err(fault) = finished {
            self.fail(context.model, fault, &mut counts);
        }
        self.counters.add(&counts);
        self.publish_in_flight();
    }

    fn finish_all<M: GuestMemory<Bitmap = ()>>(
        &mut self,
        context: &Context<'_, D, M>,
        completions: impl Iterator<Item = ReturnedOf<D>>,
        counts: &mut Counts,
    ) -> Result<(), Fault> {
        let mut result = Ok(());
        let mut clock = Clock::start();
        for (number, (body, returned)) in (1u32..).zip(completions) {
            clock.expire();
            let entry = body.entry;
            let in_time = result.is_ok() && self.runs() && body.run == self.run;
            if !in_time || !self.in_flight.complete(entry) {
                debug!(queue = self.index, head = entry.head, "completed too late");
                continue;
            }
            let outcome = match returned {
                Return::Completed(outcome) => outcome,
                Return::Resumed => {
                    let mut request = Request::new(body);
                    request.body_mut().resumed = true;
                    self.resumed.push_back(request);
                    continue;
                }
                Return::Dropped => {
                    error!(queue = self.index, "a request was dropped: this is a bug");
                    context.model.dropped()
                }
            };
            if counts.requests == 0 {
                result = self.ring.validate(context.memory);
            }
            result =
                result.and_then(|()| self.finish(context, Request::new(body), outcome, &mut clock));
            counts.requests += u64::from(result.is_ok());
            // An answer may be long.
            if context.mailbox.has_mail() || context.is_over(&mut clock, number) {
                break;
            }
        }
        if counts.requests > 0 {
            counts.interrupts += self.moderation.batch_done(
                context.polling,
                true,
                &mut self.ring,
                context.memory,
                &self.interrupt,
            )?;
        }
        result
    }
}

/// Writes a used entry, or what a fault makes of it.
#[inline]
fn push_used<M: GuestMemory>(
    ring: &mut Ring,
    faults: &Injection,
    queue: u16,
    memory: &M,
    head: u16,
    length: u32,
) -> Result<(), Fault> {
    match faults.active().and_then(|injector| injector.used(queue)) {
        None => ring.push_used(memory, head, length),
        Some(UsedFault::Duplicate) => {
            ring.push_used(memory, head, length)?;
            ring.push_used(memory, head, length)
        }
        Some(UsedFault::BadId) => ring.push_bad_used(memory, length),
    }
}
