// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The thread that changes the queues and guest memory.
//!
//! A change waits for one step of one request on each worker. The thread that handles messages must
//! not: the whole virtual machine waits for each answer about a register, and QEMU gives the
//! connection up after 5 s. So it passes changes on to this thread, which makes them one after the
//! other and answers the messages about them.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ringbar_engine::model::DeviceModel;
use ringbar_engine::{Ender, Engine, QueueControl, QueueSetup, StoppedAt, Stopping, Threads};
use ringbar_virtio_pci::{Function, Queue};
use tracing::{debug, info, warn};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::dma::{DmaMap, DmaMemory, DmaTable, DmaUnmap};
use crate::error::Error;
use crate::interrupts::Interrupts;
use crate::server::Reply;

/// Greatest number of changes that wait. A client that waits for its answers has one or two; the
/// messages of one that does not are left in the socket.
const MAX_WAITING: usize = 256;

/// Explanation and remedy where the client shares no guest memory.
const SHARE_MEMORY: &str = "the driver starts the device, but the vfio-user client shares no guest \
     memory; with QEMU use -object memory-backend-memfd,id=m0,size=...,share=on and \
     -machine ...,memory-backend=m0";

/// A change.
pub(crate) enum Change {
    /// Guest memory is added.
    Map(DmaMap, Option<OwnedFd>, Reply),
    /// Guest memory is taken away. The answer says that no worker uses it any more.
    Unmap(DmaUnmap, Reply),
    /// The driver has started the device: these features were negotiated.
    Start(u64, Vec<Queue>),
    /// The driver has added a queue to a device that is started.
    StartQueue(Queue),
    /// The device may do no DMA until [`Self::Resume`]. The sender is dropped once it does none.
    Pause(SyncSender<()>),
    /// The device may do DMA again.
    Resume,
    /// The device is reset.
    Reset,
    /// Answers a message once all changes before have been made.
    Answer(Reply),
}

/// The thread. Dropping this ends it, and the workers of the engine with it.
pub(crate) struct Control {
    changes: Option<SyncSender<Change>>,
    thread: Option<JoinHandle<()>>,
    ender: Ender,
}

impl Control {
    /// Starts the thread.
    pub(crate) fn start<D: DeviceModel>(
        device: Arc<D>,
        engine: Engine<D, DmaMemory>,
        function: Arc<Mutex<Function>>,
        interrupts: Arc<Interrupts>,
        threads: &Threads,
    ) -> Result<Self, Error> {
        let (sender, changes) = sync_channel(MAX_WAITING);
        let state = State {
            running: engine.queues().iter().map(|_| None).collect(),
            queues: engine.queues(),
            features: 0,
            paused: false,
            table: DmaTable::new(),
            device,
            engine,
            function,
            interrupts,
        };
        let ender = state.engine.ender();
        for queue in &state.queues {
            // Whether a queue runs is a matter of its start and stop only.
            queue.enable(true);
        }
        let thread = threads
            .spawn("function-control", move || state.run(&changes))
            .map_err(Error::Resources)?;
        Ok(Self {
            changes: Some(sender),
            thread: Some(thread),
            ender,
        })
    }

    /// Stops all DMA. Waits for one step of one request on each worker: what the driver does after
    /// it has taken bus mastering away relies on it, and it has no register to ask.
    pub(crate) fn pause(&self) {
        let (pausing, paused) = sync_channel(0);
        self.post(Change::Pause(pausing));
        // Nothing is sent.
        let _ = paused.recv();
    }

    /// Has a change made after those before. Waits only for a client that sends many changes
    /// without waiting for the answers.
    pub(crate) fn post(&self, change: Change) {
        let sent = self.changes.as_ref().map(|changes| changes.send(change));
        if !matches!(sent, Some(Ok(()))) {
            // The thread has panicked. The dropped change answers its message with an error.
            warn!("the device cannot change any more");
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Each worker ends after its current step, also with requests in its rings; changes that
        // still wait have nobody to wait for then.
        self.ender.end();
        self.changes = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by its thread.
            let _ = thread.join();
        }
    }
}

struct State<D: DeviceModel> {
    device: Arc<D>,
    engine: Engine<D, DmaMemory>,
    queues: Vec<Arc<dyn QueueControl>>,
    function: Arc<Mutex<Function>>,
    interrupts: Arc<Interrupts>,
    table: DmaTable,
    features: u64,
    /// Where each queue that the driver has enabled was started or paused.
    running: Vec<Option<QueueSetup>>,
    paused: bool,
}

impl<D: DeviceModel> State<D> {
    fn run(mut self, changes: &Receiver<Change>) {
        while let Ok(change) = changes.recv() {
            self.apply(change);
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Map(map, file, reply) => {
                let mapped = self.table.map(map, file, |file| self.device.owns(file));
                self.finish_memory(mapped, reply);
            }
            Change::Unmap(unmap, reply) => {
                let unmapped = self.table.unmap(unmap);
                self.finish_memory(unmapped, reply);
            }
            Change::Start(features, queues) => {
                info!(
                    features = format_args!("{features:#x}"),
                    queues = queues.len(),
                    "driver starts the device"
                );
                if self.table.memory().is_none() {
                    warn!("{SHARE_MEMORY}");
                }
                self.features = features;
                self.paused = false;
                for queue in queues {
                    self.start_queue(queue);
                }
            }
            Change::StartQueue(queue) => self.start_queue(queue),
            Change::Pause(paused) => {
                self.pause();
                drop(paused);
            }
            Change::Resume => self.resume(),
            Change::Reset => self.reset(),
            Change::Answer(reply) => reply.ok(),
        }
    }

    /// Gives the workers the memory as the table has it now, and answers.
    fn finish_memory(&self, changed: Result<(), crate::dma::DmaError>, reply: Reply) {
        match changed {
            Ok(()) => {
                self.engine.replace_memory(self.table.memory());
                reply.ok();
            }
            Err(error) => {
                warn!(%error, "guest memory cannot be changed");
                reply.error(error.errno());
            }
        }
    }

    fn start_queue(&mut self, queue: Queue) {
        let index = usize::from(queue.index);
        let (Some(control), Some(running)) = (self.queues.get(index), self.running.get_mut(index))
        else {
            return;
        };
        let setup = QueueSetup {
            size: queue.size,
            desc_table: queue.descriptors,
            avail_ring: queue.driver,
            used_ring: queue.device,
            next_avail: 0,
            next_used: 0,
            event_idx: self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
        };
        *running = Some(setup);
        if !self.paused {
            control.start(setup);
        }
    }

    /// Stops all queues after the current step of each worker. Returns where.
    fn stop_queues(&self) -> Vec<Option<StoppedAt>> {
        let stopping: Vec<_> = self.queues.iter().map(|queue| queue.begin_stop()).collect();
        stopping.into_iter().map(Stopping::wait).collect()
    }

    fn pause(&mut self) {
        self.paused = true;
        let stopped = self.stop_queues();
        for (running, stopped) in self.running.iter_mut().zip(stopped) {
            if let (Some(setup), Some(stopped)) = (running, stopped) {
                setup.go_on_from(stopped);
            }
        }
        debug!("DMA is not allowed any more");
    }

    fn resume(&mut self) {
        self.paused = false;
        for (control, running) in self.queues.iter().zip(&self.running) {
            if let Some(setup) = running {
                control.start(*setup);
            }
        }
        debug!("DMA is allowed again");
    }

    fn reset(&mut self) {
        self.stop_queues();
        self.running.fill(None);
        self.paused = false;
        self.device.unmapped();
        self.device.reset();
        self.interrupts.reset();
        // Only now the driver reads a status of 0.
        self.function
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset_done();
    }
}
