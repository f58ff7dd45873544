// SPDX-License-Identifier: GPL-2.0

//! The device while it is bound: its registers, queues and memory. Lives behind
//! a gate, see [`crate::device`].

use crate::{
    abstractions::{
        pci::{
            iommu_translates,
            ClaimedBar, //
        },
        poll::Pollers,
        shared_memory::SharedCoherent,
        vma::IoMemory, //
    },
    layout::{
        ConfigError,
        DeviceConfig,
        Opcode,
        RequestHeader,
        CONTROL_QUEUE,
        EVENT_QUEUE,
        FIRST_IO_QUEUE, //
    },
    module_parameters,
    request::{
        event::EventQueue,
        queue::{
            Config,
            Queue, //
        },
        slot::Limits, //
    },
    stats::Stats,
    virtio::transport::{
        feature,
        Transport, //
    }, //
};
use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    device::Bound,
    pci,
    prelude::*,
    sync::Arc,
    time::{
        msecs_to_jiffies,
        Delta, //
    }, //
};

/// Entries of a queue, and so requests in flight. A request takes one entry.
const QUEUE_SIZE: u16 = 256;

/// Entries of the control queue: there is never more than one command.
const CONTROL_QUEUE_SIZE: u16 = 4;

/// How long the first command may take: the device's process may be slow to
/// start, but one that does not answer for so long never will.
const HANDSHAKE_TIMEOUT_MS: u32 = 20_000;

/// The one interrupt vector.
const VECTOR: u16 = 0;

/// The longest that module parameter `poll_us` can ask for, which is for requests without
/// data: a task that looks for the end of its requests uses up a CPU meanwhile.
const MAX_POLL_US: u32 = 1000;

/// Module parameter `poll_us`.
fn poll_limit() -> Option<Delta> {
    let micros = module_parameters::poll_us.value();
    (micros > 0).then(|| Delta::from_micros(micros.min(MAX_POLL_US).into()))
}

/// Registers, queues and memory of a device.
pub(crate) struct Hardware {
    pub(crate) transport: Transport,
    config: DeviceConfig,
    pub(crate) events: Arc<EventQueue>,
    /// The control queue, then the I/O queues, of which there is at least one that is not
    /// for polled requests.
    queues: KVec<Arc<Queue>>,
    /// Which of them is for polled requests.
    polled: Option<usize>,
    pollers: Arc<Pollers>,
    aperture: Option<IoMemory>,
    limits: Limits,
    poll_limit: Option<Delta>,
}

impl Hardware {
    /// Agrees with the device on features, reads its configuration, and sets up
    /// all queues. The device is not started. `aperture_bar` is the BAR that the
    /// transport's shared memory region is in. May sleep.
    pub(crate) fn new(
        device: &pci::Device<Bound>,
        transport: Transport,
        aperture_bar: Option<ClaimedBar>,
        max_segment_bytes: usize,
        stats: &Arc<Stats>,
    ) -> Result<Self> {
        let features = transport.negotiate(
            device,
            feature::VERSION_1 | feature::INDIRECT_DESC,
            feature::EVENT_IDX | feature::ACCESS_PLATFORM,
        )?;
        if features & feature::ACCESS_PLATFORM == 0 && iommu_translates(device) {
            dev_err!(
                device,
                "an IOMMU translates this device's addresses, but the device bypasses it (no \
                 VIRTIO_F_ACCESS_PLATFORM): DMA would hit the wrong memory. Boot with iommu=pt, \
                 leave the IOMMU away, or use the vfio-user transport\n"
            );
            transport.fail(device);
            return Err(EOPNOTSUPP);
        }

        let config = DeviceConfig::parse(&transport.device_config(device)?).map_err(|error| {
            match error {
                ConfigError::NotRingbar => {
                    dev_info!(device, "another kind of device with the same id\n");
                }
                error => dev_err!(device, "unusable device configuration: {:?}\n", error),
            }
            transport.fail(device);
            ENODEV
        })?;

        transport.set_config_vector(device, VECTOR)?;
        let pollers = Arc::pin_init(Pollers::new(), GFP_KERNEL)?;
        let event_idx = features & feature::EVENT_IDX != 0;
        let queue = |index, size, with_data, polled| {
            Queue::new(
                &transport,
                device,
                &Config {
                    index,
                    size,
                    event_idx,
                    vector: VECTOR,
                    polled,
                    with_data,
                },
                stats.clone(),
                pollers.clone(),
            )
        };
        let events = EventQueue::new(&transport, device, EVENT_QUEUE, VECTOR, event_idx)?;

        let offered = transport
            .queue_count(device)?
            .saturating_sub(FIRST_IO_QUEUE);
        // One for each CPU and one for polled requests: nobody would use more, and each takes
        // memory for all its slots. CAST: Bounded by the others.
        let useful = (nr_cpu_ids() as usize).saturating_add(1);
        let count = config
            .io_queues()
            .min(offered)
            .min(useful.try_into().unwrap_or(u16::MAX));
        if count == 0 {
            dev_err!(
                device,
                "the virtual machine gives the device no I/O queue: num_vqs must be at least {}\n",
                FIRST_IO_QUEUE + 1
            );
            transport.fail(device);
            return Err(ENODEV);
        }
        let mut queues = KVec::with_capacity(1 + usize::from(count), GFP_KERNEL)?;
        queues.push(
            queue(CONTROL_QUEUE, CONTROL_QUEUE_SIZE, false, false)?,
            GFP_KERNEL,
        )?;
        // One I/O queue alone has to serve everybody.
        let polled = (count > 1).then_some(count - 1);
        for n in 0..count {
            queues.push(
                queue(FIRST_IO_QUEUE + n, QUEUE_SIZE, true, Some(n) == polled)?,
                GFP_KERNEL,
            )?;
        }

        // The smallest of the queues, so that what fits into one fits into each.
        let queue_size = queues.iter().skip(1).map(|queue| queue.size()).min();
        let limits = Limits::new(
            config.max_request_bytes() as usize,
            usize::from(config.max_segments()),
            max_segment_bytes,
            queue_size.unwrap_or(0),
        );

        // The region may be larger than what it shows: its size is a power of two.
        let aperture = match (aperture_bar, transport.shared_memory()) {
            (Some(bar), Some(region)) => {
                let len = region.len().min(config.aperture_bytes());
                Some(IoMemory::new(bar, region.offset(), len)?)
            }
            _ => None,
        };
        Ok(Self {
            transport,
            config,
            events,
            queues,
            polled: polled.map(|n| 1 + usize::from(n)),
            pollers,
            aperture,
            limits,
            poll_limit: poll_limit(),
        })
    }

    /// What the device said of itself.
    pub(crate) fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// What a request can carry.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Device memory as user space may map it, if there is an aperture.
    pub(crate) fn aperture(&self) -> Option<&IoMemory> {
        self.aperture.as_ref()
    }

    /// Starts the device and has it put its memory behind the aperture. Returns
    /// whether that worked; without it there are no maps, but there is DMA. Sleeps.
    /// The interrupt handler must be in place.
    ///
    /// `ETIMEDOUT` when the device does not answer.
    pub(crate) fn start(&self, device: &pci::Device<Bound>) -> Result<bool> {
        self.transport.start(device)?;
        self.events.start(&self.transport, device)?;

        let control = &self.queues[0];
        let mut request = control.try_acquire(device)?;
        request.prepare_command(RequestHeader::command(Opcode::MapAperture, 0, 0, 0));
        let mapped = control.execute_command(
            &self.transport,
            device,
            request,
            Some(msecs_to_jiffies(HANDSHAKE_TIMEOUT_MS)),
        );
        match mapped {
            Ok(bytes) if bytes >= self.config.aperture_bytes() => Ok(self.aperture.is_some()),
            Ok(bytes) => {
                dev_warn!(
                    device,
                    "the device has mapped {} of {} bytes: there will be no mmap\n",
                    bytes,
                    self.config.aperture_bytes()
                );
                Ok(false)
            }
            Err(error) if error == ETIMEDOUT => {
                dev_err!(
                    device,
                    "the device does not answer on its control queue. Does the virtual machine \
                     share its memory (memory-backend with share=on), and does the device's \
                     process run?\n"
                );
                Err(error)
            }
            Err(error) => {
                dev_warn!(
                    device,
                    "the device cannot map its memory ({:?}): there will be no mmap\n",
                    error
                );
                Ok(false)
            }
        }
    }

    /// Those who wait for room in a queue.
    pub(crate) fn pollers(&self) -> &Arc<Pollers> {
        &self.pollers
    }

    /// How long submitters look for the end of a request, if they do.
    pub(crate) fn poll_limit(&self) -> Option<Delta> {
        self.poll_limit
    }

    /// The queue for polled requests: the last I/O queue, if there are several. Any
    /// context.
    pub(crate) fn polled_queue(&self) -> &Queue {
        match self.polled.and_then(|n| self.queues.get(n)) {
            Some(queue) => queue,
            None => self.queue_here(),
        }
    }

    /// The I/O queue for a submitter on this CPU. Any context.
    pub(crate) fn queue_here(&self) -> &Queue {
        let (io, here) = self.io_from_here();
        &io[here]
    }

    /// The I/O queues for submitters, and which is for this CPU.
    fn io_from_here(&self) -> (&[Arc<Queue>], usize) {
        let end = self.polled.unwrap_or(self.queues.len());
        let io = &self.queues[1..end];
        // CAST: A CPU number.
        let here = (CpuId::current().as_u32() as usize)
            .checked_rem(io.len())
            .unwrap_or(0);
        (io, here)
    }

    /// The I/O queues for submitters, the one for this CPU first. Any context.
    pub(crate) fn queues_from_here(&self) -> impl Iterator<Item = &Queue> {
        let (io, here) = self.io_from_here();
        let (before, after) = io.split_at(here);
        Iterator::chain(after.iter(), before).map(|queue| &**queue)
    }

    /// Whether some submitter's queue has room; an error where they were stopped.
    /// Any context.
    pub(crate) fn has_room(&self) -> Result<bool> {
        for queue in self.queues_from_here() {
            if queue.has_room()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Number of I/O queues.
    pub(crate) fn io_queues(&self) -> usize {
        self.queues.len().saturating_sub(1)
    }

    /// Whether polled requests have a queue of their own.
    pub(crate) fn has_polled_queue(&self) -> bool {
        self.polled.is_some()
    }

    /// All queues that carry requests.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.iter().map(|queue| &**queue)
    }

    /// The used ring of the queue at `index` of the request queues.
    pub(crate) fn used_ring(&self, index: usize) -> Option<&SharedCoherent<u32>> {
        self.queues.get(index).map(|queue| queue.used_ring())
    }

    /// Makes everything that was written durable. Sleeps. `EINTR` when killed.
    pub(crate) fn flush(&self, device: &pci::Device<Bound>) -> Result {
        if !self.config.supports(Opcode::Flush) {
            return Ok(());
        }
        self.execute(device, RequestHeader::command(Opcode::Flush, 0, 0, 0))
            .map(|_| ())
    }

    /// Executes a request without data and returns its result. Sleeps. `EINTR` when
    /// killed.
    pub(crate) fn execute(
        &self,
        device: &pci::Device<Bound>,
        header: RequestHeader,
    ) -> Result<u64> {
        let queue = self.queue_here();
        let mut request = queue.acquire(device)?;
        request.prepare_command(header);
        queue.execute_command(&self.transport, device, request, None)
    }
}
