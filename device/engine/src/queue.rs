// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One queue, owned by its worker: its life, its doorbell and its interrupt. [`requests`] has the way
//! of requests through it.

mod requests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};
use vm_memory::GuestMemory;

use crate::counters::{Counts, QueueCounters};
use crate::doorbell::Doorbell;
use crate::fault::Fault;
use crate::in_flight::{InFlight, Start};
use crate::injection::{FaultId, Injection};
use crate::interrupt::InterruptSlot;
use crate::mailbox::Mailbox;
use crate::model::{DeviceModel, RequestOf, ReturnedOf};
use crate::moderation::Moderation;
use crate::record::QueueRecord;
use crate::request::Body;
use crate::ring::{QueueSetup, Ring, StoppedAt};

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

    /// Where the queue is. A broken queue is never at index 0, where only a driver that has reset
    /// the device starts it ([`Self::start`]). It takes no entry before that, so any other index
    /// will do.
    pub(crate) fn position(&self) -> StoppedAt {
        let next_avail = self.ring.next_avail();
        StoppedAt {
            next_avail: match self.broken {
                true => next_avail.max(1),
                false => next_avail,
            },
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
