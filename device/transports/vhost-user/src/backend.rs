// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device as a backend of the `vhost-user-backend` crate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ringbar_engine::model::DeviceModel;
use ringbar_engine::{Counters, Engine, Options};
use tracing::{debug, error, info, warn};
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::error::Error;
use crate::memory::without_device_memory;
use crate::memory_watch::MemoryWatch;
use crate::shared_memory::MapperThread;
use crate::vring::{Memory, Queues, Vring};

/// Explanation and remedy where the monitor shares no guest memory.
const SHARE_MEMORY: &str = "the virtual machine monitor shares no guest memory; with QEMU use \
     -object memory-backend-memfd,id=m0,size=...,share=on and -machine ...,memory-backend=m0";

/// Greatest number of entries of a ring, which is QEMU's limit.
const MAX_QUEUE_SIZE: usize = 1024;

/// Size in bytes of the largest configuration space that a monitor can read (vhost-user,
/// `VHOST_USER_MAX_CONFIG_SIZE`).
const MAX_CONFIG_SIZE: usize = 256;

/// Longest time from the negotiated features to the memory table at a start.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(2);

/// A device on one connection.
pub(crate) struct DeviceBackend<D: DeviceModel> {
    device: Arc<D>,
    engine: Engine<D, GuestMemoryMmap>,
    mapper: MapperThread,
    memory_watch: MemoryWatch,
}

impl<D: DeviceModel> DeviceBackend<D> {
    /// Starts the engine of a device.
    pub(crate) fn new(
        device: Arc<D>,
        counters: Arc<Counters>,
        options: Options,
    ) -> Result<Self, Error> {
        let queues = device.queue_count();
        if queues > crate::MAX_QUEUES {
            return Err(Error::TooManyQueues(queues));
        }
        let mapper = MapperThread::start(&options.threads).map_err(Error::Resources)?;
        device.set_mapper(Arc::clone(mapper.mapper()) as Arc<_>);
        let memory_watch = MemoryWatch::new(&options.threads, || {
            error!(
                "the driver started the device {} s ago, but {SHARE_MEMORY}",
                MEMORY_TIMEOUT.as_secs()
            );
        });
        let engine = Engine::new(Arc::clone(&device), counters, options);
        Ok(Self {
            engine: engine.map_err(Error::Resources)?,
            memory_watch: memory_watch.map_err(Error::Resources)?,
            mapper,
            device,
        })
    }

    pub(crate) const fn engine(&self) -> &Engine<D, GuestMemoryMmap> {
        &self.engine
    }

    /// Makes the queues available to the vrings that this thread creates next.
    pub(crate) fn hand_over_queues(&self) -> Queues {
        Queues::hand_over(self.engine.queues())
    }
}

impl<D: DeviceModel> VhostUserBackend for DeviceBackend<D> {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.device.queue_count().into()
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
        self.memory_watch.arm(MEMORY_TIMEOUT);
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

    /// The monitor has disabled the rings before. A broken queue works again after its next
    /// start.
    fn reset_device(&self) {
        self.device.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// The configuration space, padded with zeros, because a monitor reads as many bytes as its
    /// own command line says.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut space = self.device.config();
        space.resize(MAX_CONFIG_SIZE, 0);
        let start = offset as usize;
        let end = start.checked_add(size as usize);
        let bytes = end.and_then(|end| space.get(start..end));
        bytes.unwrap_or_default().to_vec()
    }

    /// Ignores the write: all fields of the configuration space are read-only for the driver
    /// (VIRTIO 1.3, 2.5).
    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        debug!(
            offset,
            bytes = buf.len(),
            "write to the configuration space ignored"
        );
        Ok(())
    }

    fn update_memory(&self, mem: Memory) -> io::Result<()> {
        let memory = without_device_memory(&mem.memory(), |file| self.device.owns(file));
        let memory = (memory.num_regions() > 0).then_some(memory);
        self.engine.replace_memory(memory);
        self.memory_watch.disarm();
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        self.mapper.mapper().set_channel(backend);
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(match self.device.shared_region() {
            Some(region) => VhostUserShMemConfig::new(1, &[region.bytes]),
            None => VhostUserShMemConfig::new(0, &[]),
        })
    }

    /// The crate starts no thread for queues, because the engine's workers process them.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Called when a ring has stopped. At a reset QEMU stops all queues and drops the mapping of
    /// the shared region, without a message about the mapping. So the device takes the stop of
    /// queue 0 for that. A stop of the virtual machine looks the same, but keeps the mapping.
    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        debug!(queue, "queue stopped");
        if queue == 0 {
            self.device.unmapped();
        }
        Ok(())
    }

    /// Never called, because the crate has no thread for queues.
    fn handle_event(
        &self,
        _event: u16,
        _events: EventSet,
        _vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        Ok(())
    }
}
