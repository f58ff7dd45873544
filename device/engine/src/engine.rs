// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The workers of a device, and how transports control its queues.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use vm_memory::GuestMemory;

use crate::counters::{Counters, Counts, QueueCounters};
use crate::doorbell::Doorbell;
use crate::injection::Injection;
use crate::interrupt::{Interrupt, InterruptSlot};
use crate::mailbox::{Change, Mail, Mailbox};
use crate::memory::SharedMemory;
use crate::model::{DeviceModel, ReturnedOf};
use crate::queue::Queue;
use crate::record::Record;
use crate::ring::{QueueSetup, StoppedAt};
use crate::threads::Threads;
use crate::worker::{Shared, Worker};

/// For which part of the time of a poll an interrupt may be delayed; less than 1, so that
/// somebody is there to send it.
const DELAY_DIVISOR: u32 = 2;

/// Choices of whoever runs the engine.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For how long an empty ring is polled before the worker sleeps; zero for never.
    pub poll: Duration,
    /// Number of CPUs of the host. A worker that polls takes a CPU, and the guest needs some
    /// to make requests: so queues that are polled get a worker for each two CPUs.
    pub cpus: usize,
    /// Starts the threads of the engine and of its transport.
    pub threads: Threads,
    /// Faults that queues have.
    pub faults: Injection,
    /// Where the queues record what is in flight, for another process that goes on when this one
    /// ends.
    pub record: Option<Record>,
}

/// Control of one queue, for transports. Each method returns when the queue's worker has
/// done what it says, which is before its next step of a request; on a worker that has
/// ended they do nothing.
pub trait QueueControl: fmt::Debug + Send + Sync {
    /// Starts the queue, or starts it anew with another setup. It is processed while it is
    /// enabled too.
    ///
    /// A queue that was broken is whole again where it starts from index 0.
    fn start(&self, setup: QueueSetup);

    /// Stops the queue: the device does not touch it any more. Returns where, `None` where the
    /// worker has ended. An interrupt that was delayed goes out first.
    fn stop(&self) -> Option<StoppedAt> {
        self.begin_stop().wait()
    }

    /// Asks for a stop and does not wait for it. Several queues of a worker that are asked for one
    /// after the other stop after the same step.
    fn begin_stop(&self) -> Stopping;

    /// Enables or disables the queue.
    fn enable(&self, enabled: bool);

    /// Sets the descriptor by which the driver notifies the device.
    fn set_doorbell(&self, doorbell: Option<Box<dyn Doorbell>>);

    /// Notifies the device as the driver's doorbell does. Never blocks, and makes no system
    /// call while the worker is awake.
    fn ring_doorbell(&self);

    /// Sets where interrupts go. One that was raised while there was no target is raised
    /// now. Never blocks.
    fn set_interrupt(&self, interrupt: Option<Box<dyn Interrupt>>);
}

/// A queue that was asked to stop.
#[derive(Debug)]
#[must_use = "the queue may still run"]
pub struct Stopping(Receiver<StoppedAt>);

impl Stopping {
    /// Waits until the queue has stopped, see [`QueueControl::stop`].
    pub fn wait(self) -> Option<StoppedAt> {
        self.0.recv().ok()
    }
}

struct Handle<D: DeviceModel> {
    queue: u16,
    counters: Arc<QueueCounters>,
    mailbox: Arc<Mailbox<ReturnedOf<D>>>,
    interrupt: Arc<InterruptSlot>,
}

impl<D: DeviceModel> fmt::Debug for Handle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.queue).finish()
    }
}

impl<D: DeviceModel> Handle<D> {
    /// Has the worker change the queue. Returns where that is then, unless the worker has ended.
    fn change(&self, change: Change) -> Option<StoppedAt> {
        self.begin_change(change).recv().ok()
    }

    fn begin_change(&self, change: Change) -> Receiver<StoppedAt> {
        let (done, answer) = channel();
        self.mailbox.post(Mail::Change {
            queue: self.queue,
            change,
            done,
        });
        answer
    }
}

impl<D: DeviceModel> QueueControl for Handle<D> {
    fn start(&self, setup: QueueSetup) {
        self.change(Change::Start(setup));
    }

    fn begin_stop(&self) -> Stopping {
        Stopping(self.begin_change(Change::Stop))
    }

    fn enable(&self, enabled: bool) {
        self.change(Change::Enable(enabled));
    }

    fn set_doorbell(&self, doorbell: Option<Box<dyn Doorbell>>) {
        self.change(Change::Doorbell(doorbell));
    }

    fn ring_doorbell(&self) {
        self.counters.add(&Counts {
            kicks: 1,
            ..Counts::default()
        });
        self.mailbox.ring();
    }

    fn set_interrupt(&self, interrupt: Option<Box<dyn Interrupt>>) {
        self.interrupt.set(interrupt);
    }
}

/// Asks the workers to end. Can be called from any thread, also while the engine waits.
#[derive(Clone)]
pub struct Ender(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Ender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ender").finish_non_exhaustive()
    }
}

impl Ender {
    /// Has each worker end after the step that it is at.
    pub fn end(&self) {
        (self.0)();
    }
}

/// The workers of a device. They end when this is dropped.
pub struct Engine<D: DeviceModel, M: GuestMemory> {
    shared: Arc<Shared<D, M>>,
    mailboxes: Vec<Arc<Mailbox<ReturnedOf<D>>>>,
    queues: Vec<Arc<Handle<D>>>,
    threads: Vec<JoinHandle<()>>,
}

impl<D: DeviceModel, M: GuestMemory> fmt::Debug for Engine<D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("workers", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl<D, M> Engine<D, M>
where
    D: DeviceModel,
    M: GuestMemory<Bitmap = ()> + Send + Sync + 'static,
{
    /// Starts the workers of a device. All queues are stopped and disabled, and there is no
    /// guest memory. The workers count in `counters`.
    ///
    /// # Errors
    ///
    /// Where there are no descriptors or threads. The workers that were started end.
    pub fn new(model: Arc<D>, counters: Arc<Counters>, options: Options) -> io::Result<Self> {
        let assignment = assign(model.as_ref(), options.cpus);
        let mut engine = Self {
            queues: Vec::new(),
            mailboxes: Vec::new(),
            threads: Vec::new(),
            shared: Arc::new(Shared {
                model,
                memory: SharedMemory::new(),
            }),
        };
        let mut handles = Vec::new();
        for Assignment { queues, polled } in assignment {
            let poll = match polled {
                true => options.poll,
                false => Duration::ZERO,
            };
            let mailbox = Arc::new(Mailbox::new()?);
            let own: Vec<_> = queues
                .into_iter()
                .map(|queue| {
                    let interrupt =
                        Arc::new(InterruptSlot::of_queue(queue, options.faults.clone()));
                    let counters = counters.queue(queue, D::OPERATIONS.len());
                    handles.push(Arc::new(Handle {
                        queue,
                        counters: Arc::clone(&counters),
                        mailbox: Arc::clone(&mailbox),
                        interrupt: Arc::clone(&interrupt),
                    }));
                    let model = engine.shared.model.as_ref();
                    let faults = options.faults.clone();
                    let record = options.record.as_ref();
                    let record = record.and_then(|record| record.queue(queue));
                    let delay = poll / DELAY_DIVISOR;
                    Queue::new(queue, model, counters, interrupt, delay, faults, record)
                })
                .collect();
            let shared = Arc::clone(&engine.shared);
            let faults = options.faults.clone();
            let worker = Worker::new(shared, Arc::clone(&mailbox), own, poll, faults)?;
            engine.mailboxes.push(mailbox);
            let run = move || worker.run();
            let thread = options.threads.spawn("queue-worker", run)?;
            engine.threads.push(thread);
        }
        handles.sort_by_key(|handle| handle.queue);
        engine.queues = handles;
        // Weak: an injector may outlive the engine.
        let mailboxes: Vec<_> = engine.mailboxes.iter().map(Arc::downgrade).collect();
        options.faults.set_waker(Box::new(move || {
            for mailbox in mailboxes.iter().filter_map(Weak::upgrade) {
                mailbox.post(Mail::Wake);
            }
        }));
        Ok(engine)
    }

    /// The queues, in the order of their numbers.
    pub fn queues(&self) -> Vec<Arc<dyn QueueControl>> {
        self.queues
            .iter()
            .map(|handle| Arc::clone(handle) as Arc<dyn QueueControl>)
            .collect()
    }

    /// Replaces guest memory. Returns when no worker uses the former any more. Without memory
    /// nothing is processed, and nothing is lost.
    pub fn replace_memory(&self, memory: Option<M>) {
        self.shared.memory.replace(memory);
        let (done, answers) = channel();
        for mailbox in &self.mailboxes {
            let done = done.clone();
            mailbox.post(Mail::Barrier { done });
        }
        drop(done);
        // Until all have answered or ended.
        while answers.recv().is_ok() {}
    }

    /// What asks the workers to end.
    pub fn ender(&self) -> Ender {
        let mailboxes = self.mailboxes.clone();
        Ender(Arc::new(move || {
            for mailbox in &mailboxes {
                mailbox.post(Mail::End);
            }
        }))
    }
}

impl<D: DeviceModel, M: GuestMemory> Drop for Engine<D, M> {
    fn drop(&mut self) {
        for mailbox in &self.mailboxes {
            mailbox.post(Mail::End);
        }
        for thread in self.threads.drain(..) {
            // A panic was reported by its thread.
            let _ = thread.join();
        }
    }
}

/// The queues of a worker.
#[derive(Debug, PartialEq, Eq)]
struct Assignment {
    queues: Vec<u16>,
    polled: bool,
}

/// Distributes the queues of a device over workers: one for those that are not polled, and
/// for the others one for each two CPUs.
fn assign(model: &impl DeviceModel, cpus: usize) -> Vec<Assignment> {
    let (polled, others): (Vec<_>, Vec<_>) =
        (0..model.queue_count()).partition(|queue| model.is_polled(*queue));
    let workers = polled.len().min((cpus / 2).max(1));
    let mut assignment: Vec<_> = (0..workers)
        .map(|worker| Assignment {
            queues: polled
                .iter()
                .copied()
                .skip(worker)
                .step_by(workers)
                .collect(),
            polled: true,
        })
        .collect();
    if !others.is_empty() {
        assignment.push(Assignment {
            queues: others,
            polled: false,
        });
    }
    assignment
}
