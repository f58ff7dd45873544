// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One queue, owned by its worker.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};
use vm_memory::GuestMemory;

use crate::chain::Chain;
use crate::counters::{Counts, QueueCounters};
use crate::doorbell::Doorbell;
use crate::fault::Fault;
use crate::in_flight::{Entry, InFlight, Start};
use crate::injection::{FaultId, Injection, UsedFault};
use crate::interrupt::InterruptSlot;
use crate::mailbox::Mailbox;
use crate::model::{DeviceModel, RequestOf, ReturnedOf};
use crate::moderation::Moderation;
use crate::record::QueueRecord;
use crate::request::{Body, Request, Return, Submission};
use crate::ring::{QueueSetup, Ring, StoppedAt};

/// For how long a worker processes one of several queues before it goes on to the next: the
/// others wait meanwhile, and so do their delayed interrupts.
const MAX_TURN: Duration = Duration::from_micros(100);

/// For how long a worker with a single queue processes a batch. The driver hears of the
/// requests of a batch at its end.
const MAX_BATCH: Duration = Duration::from_millis(5);

/// A worker with a single queue reads the clock once for so many requests, and the latency of one
/// of so many is measured.
const CLOCK_INTERVAL: u32 = 16;

/// What the queues of a worker share, for as long as it uses the memory.
pub(crate) struct Context<'a, D: DeviceModel, M: GuestMemory> {
    pub(crate) model: &'a D,
    pub(crate) memory: &'a M,
    pub(crate) mailbox: &'a Arc<Mailbox<ReturnedOf<D>>>,
    /// Whether the worker polls when the rings are empty, so that no doorbell is needed and
    /// an interrupt can be delayed.
    pub(crate) polling: bool,
    /// Whether the worker has a single queue.
    pub(crate) single: bool,
}

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

/// What a queue needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum QueueStatus {
    /// Nothing: it does not run.
    Stopped,
    /// The ring is empty.
    Empty,
    /// To be processed again: there may be more.
    More,
}

/// A queue with everything that belongs to it.
pub(crate) struct Queue<D: DeviceModel> {
    index: u16,
    ring: Ring,
    started: bool,
    enabled: bool,
    broken: bool,
    /// Counts how often the queue was stopped. Requests of an earlier run are of no use.
    run: u64,
    model: D::Queue,
    max_buffers: usize,
    /// Bodies of requests that are done.
    spare: Vec<Box<Body<D::Scratch, D::Outcome>>>,
    /// A request of which some steps are done.
    yielded: Option<RequestOf<D>>,
    /// Requests that the device had kept, to be submitted again.
    resumed: VecDeque<RequestOf<D>>,
    in_flight: InFlight,
    moderation: Moderation,
    interrupt: Arc<InterruptSlot>,
    counters: Arc<QueueCounters>,
    faults: Injection,
    /// The fault by which the queue takes no entries.
    stalled: Option<FaultId>,
    doorbell: Option<Box<dyn Doorbell>>,
    /// How often the doorbell was rung since this was last published.
    kicks: u64,
}

impl<D: DeviceModel> Queue<D> {
    /// A stopped queue, whose interrupts may be delayed for `delay`. What is in flight is
    /// written to `record`.
    pub(crate) fn new(
        index: u16,
        model: &D,
        counters: Arc<QueueCounters>,
        interrupt: Arc<InterruptSlot>,
        delay: Duration,
        faults: Injection,
        record: Option<QueueRecord>,
    ) -> Self {
        Self {
            index,
            ring: Ring::new(),
            started: false,
            enabled: false,
            broken: false,
            run: 0,
            model: model.queue(index),
            max_buffers: model.max_buffers(index),
            spare: Vec::new(),
            yielded: None,
            resumed: VecDeque::new(),
            in_flight: InFlight::new(record),
            moderation: Moderation::new(delay),
            interrupt,
            counters,
            faults,
            stalled: None,
            doorbell: None,
            kicks: 0,
        }
    }

    pub(crate) const fn index(&self) -> u16 {
        self.index
    }

    /// Whether the queue was started and not stopped.
    pub(crate) const fn is_started(&self) -> bool {
        self.started
    }

    /// Whether the queue is to be processed.
    pub(crate) const fn runs(&self) -> bool {
        self.started && self.enabled && !self.broken
    }

    /// Starts the queue, or starts it anew with another setup. One that another process had
    /// started goes on where that process ended.
    pub(crate) fn start(&mut self, model: &D, setup: &QueueSetup) {
        self.stop(model);
        let mut setup = *setup;
        let start = self.in_flight.start(&mut setup);
        self.ring.set_up(&setup);
        match start {
            Ok(Start::Recovered) => {
                info!(
                    queue = self.index,
                    in_flight = setup.next_avail.wrapping_sub(setup.next_used),
                    "queue goes on where another process ended"
                );
                // It may have used entries without an interrupt.
                self.interrupt.raise();
            }
            Ok(Start::Broken(_)) if self.broken => {}
            Ok(Start::Broken(fault)) => {
                info!(
                    queue = self.index,
                    ?fault,
                    "the driver broke the queue: not processed until it resets the device"
                );
                // The other process may have said neither.
                self.interrupt.raise();
                self.set_broken(model, fault);
            }
            // Only a driver that has reset the device starts here.
            Ok(Start::New) if setup.next_avail == 0 => self.broken = false,
            Ok(Start::New) => {}
            Err(fault) => {
                warn!(
                    queue = self.index,
                    ?fault,
                    "the driver changed the used ring: not processed until it resets the device"
                );
                self.set_broken(model, fault);
            }
        }
        self.started = true;
        self.begin(model);
    }

    /// Stops the queue. Requests that the model has kept are submitted again when the queue
    /// goes on.
    pub(crate) fn stop(&mut self, model: &D) {
        self.end(model);
        self.started = false;
    }

    /// Where the queue is.
    pub(crate) fn position(&self) -> StoppedAt {
        StoppedAt {
            next_avail: self.ring.next_avail(),
            next_used: self.ring.next_used(),
        }
    }

    /// Enables or disables the queue.
    pub(crate) fn enable(&mut self, model: &D, enabled: bool) {
        if enabled == self.enabled {
            return;
        }
        if !enabled {
            self.end(model);
        }
        self.enabled = enabled;
        if enabled {
            self.begin(model);
        }
    }

    /// The queue runs from here on, if nothing else is in the way.
    fn begin(&mut self, model: &D) {
        if self.runs() {
            model.queue_started(self.index);
        }
    }

    /// The queue does not run from here on.
    fn end(&mut self, model: &D) {
        self.flush_interrupt();
        self.stalled = None;
        self.run += 1;
        // Their steps bear repetition.
        let with_worker = self.yielded.take().into_iter();
        let with_worker = with_worker.chain(std::mem::take(&mut self.resumed));
        self.in_flight
            .interrupt(with_worker.map(|request| request.into_body().entry));
        match self.broken {
            // Nothing is submitted again, and the indices tell where the queue broke.
            true => self.in_flight.forget_interrupted(),
            false => (0..self.in_flight.give_back()).for_each(|_| self.ring.unpop()),
        }
        // What a guest had in flight at most is no measure of what it will have.
        self.spare = Vec::new();
        self.publish_in_flight();
        model.queue_stopped(self.index);
    }

    /// Tells how many requests were taken and are not used. Those that were interrupted are not
    /// among them: the device takes them anew.
    fn publish_in_flight(&self) {
        let with_worker = self.resumed.len() + usize::from(self.yielded.is_some());
        self.counters
            .set_in_flight(self.in_flight.deferred() + with_worker);
    }

    fn set_broken(&mut self, model: &D, fault: Fault) {
        self.broken = true;
        self.in_flight.set_broken(fault);
        model.queue_broken(self.index, fault);
        self.end(model);
    }

    pub(crate) fn set_doorbell(&mut self, doorbell: Option<Box<dyn Doorbell>>) {
        self.doorbell = doorbell;
    }

    /// The descriptor of the doorbell is readable. Returns whether it can be waited for any
    /// longer.
    pub(crate) fn acknowledge_doorbell(&mut self, model: &D) -> bool {
        match self.doorbell.as_ref().map(|bell| bell.acknowledge()) {
            Some(Ok(true)) => self.kicks += 1,
            // The doorbell was replaced meanwhile.
            Some(Ok(false)) | None => {}
            Some(Err(error)) => {
                error!(
                    queue = self.index,
                    %error,
                    "cannot read the doorbell: the queue is not processed any more"
                );
                self.counters.add(&Counts {
                    broken_queues: 1,
                    ..Counts::default()
                });
                self.set_broken(model, Fault::Ring);
                return false;
            }
        }
        true
    }

    /// How often the doorbell was rung since this was last asked.
    pub(crate) const fn take_kicks(&mut self) -> u64 {
        std::mem::replace(&mut self.kicks, 0)
    }

    /// The descriptor that the worker waits for.
    pub(crate) fn doorbell_fd(&self) -> Option<BorrowedFd<'_>> {
        self.doorbell.as_ref().map(AsFd::as_fd)
    }

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

    /// Whether there is a request in the ring; `None` where the queue is not to be processed
    /// any more. Sends the delayed interrupt when it is time to.
    pub(crate) fn poll<M: GuestMemory>(
        &mut self,
        context: &Context<'_, D, M>,
        now: Instant,
    ) -> Option<bool> {
        if !self.runs() {
            return None;
        }
        let sent = self
            .moderation
            .poll(now, &self.ring, context.memory, &self.interrupt);
        // A fault of the ring is met again when the queue is processed.
        let Ok(interrupts) = sent else {
            return Some(true);
        };
        if interrupts > 0 {
            self.counters.add(&Counts {
                interrupts,
                ..Counts::default()
            });
        }
        // A stalled queue goes on after mail.
        Some(self.stalled.is_none() && self.ring.has_available(context.memory).unwrap_or(true))
    }

    /// The worker is about to sleep: asks the driver to ring the doorbell. Returns whether
    /// the queue has to be processed first.
    pub(crate) fn prepare_sleep<M: GuestMemory>(&mut self, memory: &M) -> bool {
        if !self.runs() {
            return false;
        }
        // A fault of the ring is met again when the queue is processed.
        self.yielded.is_some()
            || !self.resumed.is_empty()
            // A stalled queue goes on after mail, and needs no doorbell until then.
            || self.stalled.is_none() && self.ring.enable_doorbell(memory).unwrap_or(true)
    }

    /// The worker does not poll any more: the delayed interrupt goes out.
    pub(crate) fn flush_interrupt(&mut self) {
        let interrupts = self.moderation.flush(&self.interrupt);
        self.counters.add(&Counts {
            interrupts,
            ..Counts::default()
        });
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
