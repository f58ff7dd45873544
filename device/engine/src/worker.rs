// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A thread with its queues.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use tracing::{debug, error, warn};
use vm_memory::GuestMemory;

use crate::doorbell::Doorbell;
use crate::injection::{FaultId, Injection};
use crate::mailbox::{Change, Contents, Mail, Mailbox};
use crate::memory::SharedMemory;
use crate::model::{DeviceModel, ReturnedOf};
use crate::polling::Polling;
use crate::queue::{Context, Queue, QueueStatus};
use crate::ring::StoppedAt;

/// The number by which the worker's epoll knows its own mailbox; others are queues.
const MAILBOX: u64 = u64::MAX;

/// What the workers of an engine share.
pub(crate) struct Shared<D: DeviceModel, M: GuestMemory> {
    pub(crate) model: Arc<D>,
    pub(crate) memory: SharedMemory<M>,
}

/// A stop that a fault holds up.
struct HeldStop {
    queue: u16,
    fault: FaultId,
    until: Instant,
    done: Sender<StoppedAt>,
}

/// The worker has been asked to end.
struct Ended;

/// A thread with its queues.
pub(crate) struct Worker<D: DeviceModel, M: GuestMemory> {
    shared: Arc<Shared<D, M>>,
    mailbox: Arc<Mailbox<ReturnedOf<D>>>,
    queues: Vec<Queue<D>>,
    /// Which queue is processed next.
    next: usize,
    /// Requests that were completed elsewhere, and for which there was no guest memory or no
    /// time yet.
    unwritten: Vec<ReturnedOf<D>>,
    polling: Polling,
    epoll: OwnedFd,
    faults: Injection,
    held_stops: Vec<HeldStop>,
    /// Empty, for what is taken out of the mailbox.
    contents: Contents<ReturnedOf<D>>,
}

impl<D: DeviceModel, M: GuestMemory> Drop for Worker<D, M> {
    fn drop(&mut self) {
        // Also after a panic: whoever waits for an answer hears that there is none.
        self.mailbox.close();
    }
}

impl<D, M> Worker<D, M>
where
    D: DeviceModel,
    M: GuestMemory<Bitmap = ()>,
{
    /// For these queues, polled for at most `poll` at a time.
    pub(crate) fn new(
        shared: Arc<Shared<D, M>>,
        mailbox: Arc<Mailbox<ReturnedOf<D>>>,
        queues: Vec<Queue<D>>,
        poll: Duration,
        faults: Injection,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(MAILBOX);
        epoll::add(&epoll, mailbox.wake_fd(), data, epoll::EventFlags::IN)?;
        Ok(Self {
            shared,
            mailbox,
            queues,
            next: 0,
            unwritten: Vec::new(),
            polling: Polling::new(poll),
            epoll,
            faults,
            held_stops: Vec::new(),
            contents: Contents::default(),
        })
    }

    /// Processes the queues until asked to end.
    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(self.queues.len() + 1);
        while let Ok(()) = self.run_until_asleep() {
            if let Err(errno) = self.sleep(&mut events) {
                // Bad descriptors only: nothing can be waited for.
                error!(error = %io::Error::from(errno), "a worker cannot wait and ends");
                return;
            }
        }
        for queue in &mut self.queues {
            queue.stop(&self.shared.model);
        }
    }

    /// Returns when all rings are empty and the driver will ring.
    fn run_until_asleep(&mut self) -> Result<(), Ended> {
        let mut polling = self.polling.should_poll();
        loop {
            self.read_mail(polling)?;
            self.release_stops();
            match self.process(polling) {
                QueueStatus::More => {}
                QueueStatus::Empty if polling => polling = self.poll(),
                QueueStatus::Empty | QueueStatus::Stopped => {
                    self.flush_interrupts();
                    if self.prepare_sleep() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads mail and processes each queue once. Returns whether there may be more to do.
    #[cfg(feature = "testing")]
    pub(crate) fn step(&mut self) -> bool {
        self.read();
        if self.process(false) == QueueStatus::More {
            return true;
        }
        self.flush_interrupts();
        let sleeps = self.prepare_sleep();
        self.mailbox.sleeper().wake_up();
        !sleeps
    }

    /// Reads mail.
    #[cfg(feature = "testing")]
    pub(crate) fn read(&mut self) {
        // Nothing depends on a worker without a thread that was asked to end.
        let _ = self.read_mail(false);
    }

    /// Processes each queue once, but reads mail first where there is some: a transport waits
    /// for one step of one request, whatever is in the other queues.
    fn process(&mut self, polling: bool) -> QueueStatus {
        let Some(memory) = self.shared.memory.get() else {
            self.report_missing_memory();
            return QueueStatus::Stopped;
        };
        let single = self.queues.len() == 1;
        let context = self.shared.context(&memory, &self.mailbox, polling, single);
        let mut status = QueueStatus::Stopped;
        for _ in 0..self.queues.len() {
            if self.mailbox.has_mail() {
                return QueueStatus::More;
            }
            status = status.max(self.queues[self.next].process(&context));
            self.next = (self.next + 1) % self.queues.len();
        }
        status
    }

    /// The driver rings, but nothing can be read.
    fn report_missing_memory(&mut self) {
        for queue in &mut self.queues {
            if queue.runs() && queue.take_kicks() > 0 {
                warn!(
                    queue = queue.index(),
                    "doorbell without guest memory: the transport has given none"
                );
            }
        }
    }

    /// Polls the rings and the mailbox. Returns whether to go on polling.
    fn poll(&mut self) -> bool {
        let Self {
            shared,
            mailbox,
            queues,
            polling,
            unwritten,
            ..
        } = self;
        let single = queues.len() == 1;
        polling.poll(|now| {
            if mailbox.sleeper().is_notified() || !unwritten.is_empty() {
                return Some(true);
            }
            let memory = shared.memory.get()?;
            let context = shared.context(&memory, mailbox, true, single);
            queues
                .iter_mut()
                .filter_map(|queue| queue.poll(&context, now))
                .reduce(|any, found| any || found)
        })
    }

    fn flush_interrupts(&mut self) {
        self.queues.iter_mut().for_each(Queue::flush_interrupt);
    }

    /// Returns whether the worker may wait to be woken.
    fn prepare_sleep(&mut self) -> bool {
        let (shared, queues) = (&self.shared, &mut self.queues);
        let is_written = self.unwritten.is_empty();
        self.mailbox.sleeper().fall_asleep(|| {
            let memory = shared.memory.get();
            memory.is_some_and(|memory| {
                let unfinished = queues.iter_mut().map(|queue| queue.prepare_sleep(&*memory));
                // Each has to ask for the doorbell.
                unfinished.fold(!is_written, |any, more| any | more)
            })
        })
    }

    /// Waits until there is mail or a doorbell rings.
    fn sleep(&mut self, events: &mut Vec<epoll::Event>) -> Result<(), Errno> {
        let timeout = self.held_stops.iter().map(|held| held.until).min();
        let timeout = timeout.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            // At most the longest time of a fault.
            Timespec::try_from(left).unwrap_or_default()
        });
        let waited = epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref());
        self.mailbox.sleeper().wake_up();
        match waited {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        for event in events.drain(..) {
            match event.data.u64() {
                MAILBOX => self.mailbox.acknowledge(),
                index => {
                    let queue = self
                        .queues
                        .iter_mut()
                        .find(|q| u64::from(q.index()) == index);
                    let Some(queue) = queue else { continue };
                    if !queue.acknowledge_doorbell(&self.shared.model) {
                        forget_doorbell(&self.epoll, queue);
                    }
                }
            }
        }
        Ok(())
    }

    /// Does what the mail says, and takes back requests that were completed elsewhere.
    fn read_mail(&mut self, polling: bool) -> Result<(), Ended> {
        // Either may be seen first; a worker that waited for the other would spin.
        if !self.mailbox.sleeper().take_notified() && !self.mailbox.has_mail() {
            self.complete(polling);
            return Ok(());
        }
        let mut contents = std::mem::take(&mut self.contents);
        self.mailbox.take(&mut contents);
        let read = contents.mail.drain(..).try_for_each(|mail| self.act(mail));
        self.unwritten.append(&mut contents.returned);
        self.contents = contents;
        if read.is_ok() {
            self.complete(polling);
        }
        read
    }

    /// Writes the answers of requests that were completed elsewhere, once there is memory.
    fn complete(&mut self, polling: bool) {
        if self.unwritten.is_empty() {
            return;
        }
        let Some(memory) = self.shared.memory.get() else {
            return;
        };
        let single = self.queues.len() == 1;
        let context = self.shared.context(&memory, &self.mailbox, polling, single);
        for queue in &mut self.queues {
            let index = queue.index();
            let own = self
                .unwritten
                .extract_if(.., |(body, _)| body.queue == index);
            queue.complete(&context, own);
        }
    }

    /// Stops the queues that a fault has held up for long enough.
    fn release_stops(&mut self) {
        if !self.held_stops.is_empty() {
            let (faults, now) = (self.faults.clone(), Instant::now());
            self.stop_held(|held| held.until <= now || !faults.persists(held.fault));
        }
    }

    fn stop_held(&mut self, is_over: impl Fn(&HeldStop) -> bool) {
        for held in self.held_stops.extract_if(.., |held| is_over(held)) {
            let queue = self.queues.iter_mut().find(|q| q.index() == held.queue);
            if let Some(queue) = queue {
                queue.stop(&self.shared.model);
                // Whoever asked may not wait any more.
                let _ = held.done.send(queue.position());
            }
        }
    }

    fn act(&mut self, mail: Mail) -> Result<(), Ended> {
        match mail {
            Mail::End => return Err(Ended),
            Mail::Wake => {}
            Mail::Barrier { done } => {
                // Whoever asked may not wait any more.
                let _ = done.send(());
            }
            Mail::Change {
                queue,
                change,
                done,
            } => {
                // In the order in which the changes came.
                self.stop_held(|held| held.queue == queue);
                if let Some(queue) = self.queues.iter_mut().find(|q| q.index() == queue) {
                    if matches!(change, Change::Stop)
                        && queue.is_started()
                        && let Some(injector) = self.faults.active()
                        && let Some((fault, time)) = injector.hold_stop(queue.index())
                    {
                        self.held_stops.push(HeldStop {
                            queue: queue.index(),
                            fault,
                            until: Instant::now() + time,
                            done,
                        });
                        return Ok(());
                    }
                    let model = self.shared.model.as_ref();
                    match change {
                        Change::Start(setup) => queue.start(model, &setup),
                        Change::Stop => queue.stop(model),
                        Change::Enable(enabled) => queue.enable(model, enabled),
                        Change::Doorbell(doorbell) => set_doorbell(&self.epoll, queue, doorbell),
                    }
                    let _ = done.send(queue.position());
                }
            }
        }
        Ok(())
    }
}

impl<D: DeviceModel, M: GuestMemory> Shared<D, M> {
    fn context<'a>(
        &'a self,
        memory: &'a M,
        mailbox: &'a Arc<Mailbox<ReturnedOf<D>>>,
        polling: bool,
        single: bool,
    ) -> Context<'a, D, M> {
        Context {
            model: self.model.as_ref(),
            memory,
            mailbox,
            polling,
            single,
        }
    }
}

/// Has the worker wait for another doorbell of a queue.
fn set_doorbell<D: DeviceModel>(
    epoll: &OwnedFd,
    queue: &mut Queue<D>,
    doorbell: Option<Box<dyn Doorbell>>,
) {
    forget_doorbell(epoll, queue);
    queue.set_doorbell(doorbell);
    let Some(fd) = queue.doorbell_fd() else {
        return;
    };
    let data = epoll::EventData::new_u64(queue.index().into());
    if let Err(error) = epoll::add(epoll, fd, data, epoll::EventFlags::IN) {
        warn!(queue = queue.index(), %error, "cannot wait for the doorbell");
    }
}

fn forget_doorbell<D: DeviceModel>(epoll: &OwnedFd, queue: &Queue<D>) {
    if let Some(fd) = queue.doorbell_fd()
        && let Err(error) = epoll::delete(epoll, fd)
    {
        debug!(queue = queue.index(), %error, "the doorbell was not waited for");
    }
}
