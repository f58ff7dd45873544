// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The workers of a device without their threads.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vm_memory::GuestMemory;

use crate::counters::Counters;
use crate::injection::Injection;
use crate::interrupt::{Interrupt, InterruptSlot};
use crate::mailbox::{Change, Mail, Mailbox};
use crate::memory::SharedMemory;
use crate::model::{DeviceModel, ReturnedOf};
use crate::queue::Queue;
use crate::ring::{QueueSetup, StoppedAt};
use crate::worker::{Shared, Worker};

/// An engine that does nothing unless it is asked to, on the caller's thread, so that a test can
/// repeat what it has done. Workers do not poll, and each change happens at once.
///
/// A worker with several queues looks at the clock, and may leave a queue after a part of its
/// requests; one with a single queue of fewer than 16 entries does not.
pub struct Stepped<D: DeviceModel, M: GuestMemory> {
    shared: Arc<Shared<D, M>>,
    workers: Vec<Stepper<D, M>>,
    interrupts: Vec<Arc<InterruptSlot>>,
}

struct Stepper<D: DeviceModel, M: GuestMemory> {
    mailbox: Arc<Mailbox<ReturnedOf<D>>>,
    worker: Worker<D, M>,
}

impl<D, M> Stepped<D, M>
where
    D: DeviceModel,
    M: GuestMemory<Bitmap = ()>,
{
    /// For all queues of a device, one worker for all or for each of them. As
    /// [`crate::Engine::new`].
    ///
    /// # Errors
    ///
    /// Where there are no descriptors.
    pub fn new(model: Arc<D>, counters: Arc<Counters>, one_worker: bool) -> io::Result<Self> {
        let count = model.queue_count();
        let interrupts: Vec<Arc<InterruptSlot>> = (0..count).map(|_| Arc::default()).collect();
        let shared = Arc::new(Shared {
            model,
            memory: SharedMemory::new(),
        });
        let assignment: Vec<Vec<u16>> = match one_worker {
            true => vec![(0..count).collect()],
            false => (0..count).map(|queue| vec![queue]).collect(),
        };
        let mut workers = Vec::new();
        for queues in assignment {
            let queue = |index: u16| {
                let interrupt = Arc::clone(&interrupts[usize::from(index)]);
                Queue::new(
                    index,
                    shared.model.as_ref(),
                    counters.queue(index, D::OPERATIONS.len()),
                    interrupt,
                    Duration::ZERO,
                    Injection::default(),
                    None,
                )
            };
            let own = queues.into_iter().map(queue).collect();
            let mailbox = Arc::new(Mailbox::new()?);
            let (shared, same) = (Arc::clone(&shared), Arc::clone(&mailbox));
            workers.push(Stepper {
                worker: Worker::new(shared, same, own, Duration::ZERO, Injection::default())?,
                mailbox,
            });
        }
        Ok(Self {
            shared,
            workers,
            interrupts,
        })
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// As [`crate::Engine::replace_memory`].
    pub fn replace_memory(&self, memory: Option<M>) {
        self.shared.memory.replace(memory);
    }

    /// As [`crate::QueueControl::start`].
    pub fn start(&mut self, queue: u16, setup: QueueSetup) {
        self.change(queue, || Change::Start(setup));
    }

    /// As [`crate::QueueControl::stop`].
    pub fn stop(&mut self, queue: u16) -> StoppedAt {
        self.change(queue, || Change::Stop)
    }

    /// As [`crate::QueueControl::enable`].
    pub fn enable(&mut self, queue: u16, enabled: bool) {
        self.change(queue, || Change::Enable(enabled));
    }

    /// As [`crate::QueueControl::set_interrupt`].
    pub fn set_interrupt(&self, queue: u16, interrupt: Option<Box<dyn Interrupt>>) {
        self.interrupts[usize::from(queue)].set(interrupt);
    }

    /// A worker reads its mail and processes each of its queues once. Returns whether it would go
    /// on rather than sleep.
    pub fn step(&mut self, worker: usize) -> bool {
        self.workers[worker].worker.step()
    }

    fn change(&mut self, queue: u16, change: impl Fn() -> Change) -> StoppedAt {
        let worker = match self.workers.len() {
            1 => 0,
            _ => usize::from(queue),
        };
        let Stepper { mailbox, worker } = &mut self.workers[worker];
        let (done, answer) = channel();
        mailbox.post(Mail::Change {
            queue,
            change: change(),
            done,
        });
        worker.read();
        answer.recv().unwrap()
    }
}
