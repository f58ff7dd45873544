// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device as the `vhost-user-backend` crate wants it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::available_parallelism;
use std::time::Duration;

use ringbar_spec::{CONTROL_QUEUE, DeviceConfig, EVENT_QUEUE, FIRST_IO_QUEUE, QueueFault};
use tracing::{debug, error, info, warn};
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::device::Device;
use crate::error::Error;
use crate::event_queue::EventServer;
use crate::events::PendingEvents;
use crate::exit_events::ExitEvents;
use crate::memory_timer::MemoryTimer;
use crate::queue::Shared;
use crate::ring::{Memory, Ring};
use crate::worker::{CONTROL_WORKER, Worker, assign_queues, queues};

/// What to do about guest memory that does not arrive.
pub(crate) const SHARE_MEMORY: &str = "the virtual machine monitor shares no guest memory; with QEMU use \
     -object memory-backend-memfd,id=m0,size=...,share=on and -machine ...,memory-backend=m0";

/// Largest ring the device serves, as much as QEMU allows.
const MAX_QUEUE_SIZE: usize = 1024;

/// Largest configuration space a monitor can ask for (vhost-user,
/// `VHOST_USER_MAX_CONFIG_SIZE`).
const MAX_CONFIG_SIZE: u32 = 256;

/// How long a start may take from the negotiated features to guest memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(2);

/// A worker thread as the library sees it.
type Handler = VringEpollHandler<Arc<DeviceBackend>>;

/// The device on one connection.
pub(crate) struct DeviceBackend {
    shared: Shared,
    events: EventServer,
    workers: Vec<Worker>,
    /// For each worker the mask of its queues.
    masks: Vec<u64>,
    queues: usize,
    /// Dropped when the workers have ended: each holds on to this for longer than to its
    /// epoll.
    exit_events: ExitEvents,
    memory_timer: MemoryTimer,
    /// The library's halves of the workers, which hold on to this.
    handlers: OnceLock<Vec<Weak<Handler>>>,
}

impl DeviceBackend {
    pub(crate) fn new(device: Arc<Device>) -> Result<Self, Error> {
        let io_queues = device.config().io_queues();
        let queues = usize::from(FIRST_IO_QUEUE + io_queues);
        let events = Arc::new(PendingEvents::new(queues).map_err(Error::Resources)?);
        let cpus = available_parallelism().map_or(1, usize::from);
        let masks = assign_queues(io_queues, cpus);
        Ok(Self {
            events: EventServer::default(),
            workers: Worker::for_masks(&masks, &device),
            exit_events: ExitEvents::new(masks.len()).map_err(Error::Resources)?,
            masks,
            queues,
            memory_timer: MemoryTimer::new().map_err(Error::Resources)?,
            handlers: OnceLock::new(),
            shared: Shared::new(device, events)?,
        })
    }

    /// Number of the event that says that an event of ours is pending.
    fn pending_token(&self) -> u16 {
        self.num_queues() as u16 + 1
    }

    /// Number of the event that says that guest memory is overdue.
    fn overdue_token(&self) -> u16 {
        self.num_queues() as u16 + 2
    }

    /// Has the control worker listen to events other than kicks.
    pub(crate) fn register(&self, workers: &[Arc<Handler>]) -> io::Result<()> {
        self.handlers
            .get_or_init(|| workers.iter().map(Arc::downgrade).collect());
        let worker = workers
            .get(CONTROL_WORKER)
            .ok_or_else(|| io::Error::other("no control worker"))?;
        worker.register_listener(
            self.shared.events.wake().as_raw_fd(),
            EventSet::IN,
            self.pending_token().into(),
        )?;
        worker.register_listener(
            self.memory_timer.as_fd().as_raw_fd(),
            EventSet::IN,
            self.overdue_token().into(),
        )
    }

    /// Has the workers leave what is in the rings, because the connection ends.
    pub(crate) fn end(&self) {
        self.shared.end();
    }

    /// Ends the workers, also those that the library has forgotten.
    pub(crate) fn end_workers(&self) {
        self.exit_events.send();
    }

    fn memory_overdue(&self) {
        match self.memory_timer.take_expired() {
            Ok(true) => error!(
                "the driver started the device {} s ago, but {SHARE_MEMORY}",
                MEMORY_PATIENCE.as_secs()
            ),
            Ok(false) => debug!("guest memory arrived at the last moment"),
            Err(error) => warn!(%error, "cannot read the timer"),
        }
    }

    /// A kick descriptor of the worker cannot be read: takes it off the worker, which
    /// would be woken for ever, and gives up its ring, the worker's `index`th.
    fn kick_failed(&self, worker: usize, index: u16, ring: &Ring, error: &io::Error) {
        let queue = queues(self.masks.get(worker).copied().unwrap_or(0))
            .nth(index.into())
            .unwrap_or(index);
        error!(
            queue,
            %error,
            "cannot read the kick descriptor: the queue is not served any more"
        );
        let handler = self
            .handlers
            .get()
            .and_then(|all| all.get(worker)?.upgrade());
        let vring = ring.get_mut();
        if let (Some(handler), Some(kick)) = (handler, vring.get_kick()) {
            // The library compares the token with its own events only when it adds one.
            let token = self.overdue_token().into();
            if let Err(error) = handler.unregister_listener(kick.as_raw_fd(), EventSet::IN, token) {
                debug!(%error, "the kick descriptor has gone");
            }
        }
        ring.set_broken();
        drop(vring);
        self.shared
            .events
            .queue_broken(queue, QueueFault::Ring, ring);
    }
}

impl VhostUserBackend for DeviceBackend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        info!(
            features = format_args!("{features:#x}"),
            "driver starts the device"
        );
        if features & (1 << VIRTIO_F_VERSION_1) == 0 {
            warn!("the driver did not accept VIRTIO 1: it will not get far");
        }
        if let Err(error) = self.memory_timer.arm(MEMORY_PATIENCE) {
            debug!(%error, "cannot arm the timer");
        }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::SHMEM
    }

    /// The rings are disabled already when this is called. Those that are broken
    /// become whole at their next start.
    fn reset_device(&self) {
        info!("device reset");
        self.shared.aperture.stopped();
        self.shared.events.clear();
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// The configuration space, padded with zeros: a monitor asks for as many
    /// bytes as it was told to show.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        if offset
            .checked_add(size)
            .is_none_or(|end| end > MAX_CONFIG_SIZE)
        {
            return Vec::new();
        }
        let mut space = [0; MAX_CONFIG_SIZE as usize];
        space[..DeviceConfig::SIZE].copy_from_slice(&self.shared.device.config().to_bytes());
        space[offset as usize..][..size as usize].to_vec()
    }

    /// Nothing in the configuration space can be written (VIRTIO 1.3, 2.5).
    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        debug!(
            offset,
            bytes = buf.len(),
            "write to the configuration space ignored"
        );
        Ok(())
    }

    fn update_memory(&self, mem: Memory) -> io::Result<()> {
        self.shared.memory.update(&mem);
        if let Err(error) = self.memory_timer.disarm() {
            debug!(%error, "cannot disarm the timer");
        }
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: vhost::vhost_user::Backend) {
        self.shared.aperture.set_backend(backend);
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(self.shared.aperture.layout().shmem_config())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        self.masks.clone()
    }

    fn exit_event(&self, worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit_events.take(worker)
    }

    /// Called when the ring is idle and disabled. The monitor drops the mapping
    /// of the aperture when it stops the device, and says nothing about it.
    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        debug!(queue, "queue stopped");
        if queue == u32::from(CONTROL_QUEUE) {
            self.shared.aperture.stopped();
        }
        Ok(())
    }

    /// Never fails: an error returned from here ends the worker.
    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        rings: &[Ring],
        worker: usize,
    ) -> io::Result<()> {
        if let Some(ring) = rings.get(usize::from(event)) {
            if let Some(error) = ring.take_kick_error() {
                self.kick_failed(worker, event, ring, &error);
            } else if worker == CONTROL_WORKER && event == EVENT_QUEUE {
                self.events.serve(&self.shared, ring);
            } else if let Some(worker) = self.workers.get(worker) {
                worker.serve(&self.shared, rings);
            }
        } else if event == self.pending_token() {
            // Reads how often it was written, which does not matter.
            let _ = self.shared.events.wake().read();
            if let Some(ring) = rings.get(usize::from(EVENT_QUEUE)) {
                self.events.serve(&self.shared, ring);
            }
        } else if event == self.overdue_token() {
            self.memory_overdue();
        }
        Ok(())
    }
}
