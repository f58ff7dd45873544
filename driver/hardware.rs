// SPDX-License-Identifier: GPL-2.0

//! The device while it is bound: its registers, queues and memory. Lives behind
//! an [`SrcuRevocable`], see [`crate::device`].
//!
//! [`SrcuRevocable`]: crate::abstractions::pci::revocable::SrcuRevocable
//!
//! Whether it runs is a value, [`Life`], behind a lock: who has the lock may stop and start
//! the device, and nobody else does. Memory that the device knows of is given back only
//! with the proof that it does not run ([`Quiesced`]).

use crate::{
    abstractions::{
        fs::poll::Pollers,
        mm::{
            shared_memory::SharedCoherent,
            vma::IoMemory, //
        },
        pci::{
            device::{
                iommu_translates,
                ClaimedBar, //
            },
            revocable::{
                Guard,
                Revoked, //
            }, //
        },
        task::{
            wait::Signals,
            work::WorkQueue, //
        }, //
    },
    events::{
        EventQueue,
        Received, //
    },
    layout::{
        ConfigError,
        DeviceConfig,
        Opcode,
        RequestHeader,
        EVENT_QUEUE,
        FIRST_IO_QUEUE, //
    },
    module_parameters,
    queue::{
        buffers::Limits,
        lifecycle::Unfinished,
        poll_policy::WaitStrategy,
        state::{
            Config,
            Queue,
            QueueRef, //
        }, //
    },
    queues::{
        Queues,
        Role, //
    },
    recovery::Recovery,
    stats::Stats,
    virtio::{
        reset::Quiesced,
        transport::{
            feature,
            Transport, //
        }, //
    }, //
};
use kernel::{
    device::Bound,
    new_mutex,
    pci,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// How long the first command may take: the device's process may be slow to
/// start, but one that does not answer for so long never will.
const HANDSHAKE_TIMEOUT_MS: u32 = 20_000;

/// How long to wait for the end of what is in flight before the machine sleeps. What is left
/// is submitted again afterwards.
const DRAIN_LIMIT: Delta = Delta::from_secs(10);

/// After how long to look again.
const DRAIN_PAUSE: Delta = Delta::from_millis(1);

/// Features that the driver cannot do without, and those it makes use of.
const REQUIRED: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;
const WANTED: u64 = feature::EVENT_IDX | feature::ACCESS_PLATFORM;

/// The one interrupt vector.
const VECTOR: u16 = 0;

/// The longest that module parameter `poll_us` can ask for, which is for requests without
/// data: a task that busy-polls uses up a CPU meanwhile.
const MAX_POLL_US: u32 = 1000;

/// Module parameter `poll_us`.
fn poll_limit() -> Option<Delta> {
    let micros = module_parameters::poll_us.value();
    (micros > 0).then(|| Delta::from_micros(micros.min(MAX_POLL_US).into()))
}

/// Whether the device runs.
///
/// ```text
///  Down(New) ---- start ----> Running ---- halt ----> Down(Asleep, OutOfService, Removed)
///                                ^  |                    |
///                                |  +-- halt fails --> Unstoppable
///                                +------ start ----------+ (unless Removed)
/// ```
pub(crate) enum Life {
    /// It has been reset. The memory that it was given belongs to the driver.
    Down(Quiesced, Why),
    /// It runs, or has been asked to.
    Running,
    /// It cannot be stopped. What it was given is its own for ever.
    Unstoppable,
}

/// Why a device is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It has not been started yet.
    New,
    /// The machine sleeps.
    Asleep,
    /// It has failed, or is being reset.
    OutOfService,
    /// The driver is being unbound: it is not started again.
    Removed,
}

/// What has become of a device that was started.
pub(crate) struct Started {
    /// Whether the device memory is behind the aperture.
    pub(crate) mapped: bool,
    /// Bytes of device memory.
    pub(crate) capacity: u64,
}

/// Registers, queues and memory of a device.
pub(crate) struct Hardware {
    transport: Transport,
    features: u64,
    config: DeviceConfig,
    events: Arc<EventQueue>,
    queues: Queues,
    pollers: Arc<Pollers>,
    aperture: Option<IoMemory>,
    limits: Limits,
    recovery: Arc<Recovery>,
    life: Pin<KBox<Mutex<Life>>>,
    /// For the work item of the recovery, which is detached before this goes.
    work: Arc<WorkQueue>,
    /// For what waits for processes with maps, which may take any time: nothing else is to wait
    /// behind it.
    map_work: WorkQueue,
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
        recovery: Arc<Recovery>,
    ) -> Result<Self> {
        let quiesced = transport.quiesce(device).map_err(|_| EIO)?;
        let features = transport.negotiate(device, &quiesced, REQUIRED, WANTED)?;
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
        let events = EventQueue::new(&transport, device, EVENT_QUEUE, VECTOR, event_idx)?;

        let offered = transport
            .queue_count(device)?
            .saturating_sub(FIRST_IO_QUEUE);
        let offered = config.io_queues().min(offered);
        if offered == 0 {
            dev_err!(
                device,
                "the virtual machine gives the device no I/O queue: num_vqs must be at least {}\n",
                FIRST_IO_QUEUE + 1
            );
            transport.fail(device);
            return Err(ENODEV);
        }
        let poll_limit = poll_limit();
        let queues = Queues::new(offered, |index, role| {
            Queue::new(
                &transport,
                device,
                &Config {
                    index,
                    size: role.size(),
                    event_idx,
                    vector: VECTOR,
                    polled: matches!(role, Role::Polled),
                    poll_limit,
                    with_data: !matches!(role, Role::Control),
                },
                stats.clone(),
                recovery.clone(),
                pollers.clone(),
            )
        })?;

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
            features,
            config,
            events,
            queues,
            pollers,
            aperture,
            limits,
            recovery,
            life: KBox::pin_init(
                new_mutex!(Life::Down(quiesced, Why::New), "ringbar_life"),
                GFP_KERNEL,
            )?,
            work: Arc::new(WorkQueue::new()?, GFP_KERNEL)?,
            map_work: WorkQueue::new()?,
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

    /// The faults of this device.
    pub(crate) fn recovery(&self) -> &Arc<Recovery> {
        &self.recovery
    }

    /// The queue for work on this device.
    pub(crate) fn work(&self) -> &Arc<WorkQueue> {
        &self.work
    }

    /// The queue for waiting for processes with maps.
    pub(crate) fn map_work(&self) -> &WorkQueue {
        &self.map_work
    }

    /// Whether the device has broken a queue since it was set up. So has one that is down,
    /// where it ended with an error. Any context.
    pub(crate) fn is_broken(&self) -> bool {
        self.events.is_broken() || self.queues.iter().any(Queue::is_failed)
    }

    /// Whether the device runs; who has this locked decides.
    pub(crate) fn life(&self) -> &Mutex<Life> {
        &self.life
    }

    /// Starts a device that is down, sets it up before if it is not new, and has it put its
    /// memory behind the aperture; without that there are no maps, but there is DMA. Requests
    /// that wait go to the device. Sleeps. The interrupt handler must be in place. Calls `prepared`
    /// with the size of the device's memory when there is nothing left of the life before: the
    /// rings are empty, and the device does not run yet.
    ///
    /// `ETIMEDOUT` when the device does not answer, `EIO` when it is not the same as before.
    /// After an error it may run all the same, and has to be halted.
    pub(crate) fn start(
        &self,
        device: &pci::Device<Bound>,
        life: &mut Life,
        prepared: impl FnOnce(u64),
    ) -> Result<Started> {
        let (quiesced, why) = match core::mem::replace(life, Life::Running) {
            Life::Down(quiesced, why) => (quiesced, why),
            other => {
                *life = other;
                return Err(EIO);
            }
        };
        let config = match why {
            Why::New => self.config,
            Why::Removed => {
                *life = Life::Down(quiesced, why);
                return Err(ENODEV);
            }
            Why::Asleep | Why::OutOfService => match self.set_up_again(device, &quiesced) {
                Ok(config) => config,
                Err(error) => {
                    *life = Life::Down(quiesced, why);
                    return Err(error);
                }
            },
        };
        prepared(config.capacity());
        self.transport.start(device, quiesced)?;
        self.events.start(&self.transport, device)?;
        self.control(device).thaw();
        let mapped = self.map_aperture(device, config.aperture_bytes())?;
        for queue in self.queues(device) {
            queue.thaw();
        }
        Ok(Started {
            mapped,
            capacity: config.capacity(),
        })
    }

    /// Sets up a device that was reset as [`Self::new`] has done, and checks that it is still
    /// the same. Returns its configuration, which may have another size.
    fn set_up_again(
        &self,
        device: &pci::Device<Bound>,
        quiesced: &Quiesced,
    ) -> Result<DeviceConfig> {
        let features = self
            .transport
            .negotiate(device, quiesced, REQUIRED, WANTED)?;
        let config = DeviceConfig::parse(&self.transport.device_config(device)?)
            .ok()
            .filter(|config| features == self.features && self.is_same_but_for_size(config));
        let Some(config) = config else {
            dev_err!(
                device,
                "after the reset the device is another one: it has other features or another \
                 configuration. Unbind and bind the driver to use it\n"
            );
            self.transport.fail(device);
            return Err(EIO);
        };
        self.transport.set_config_vector(device, VECTOR)?;
        self.events.restart(&self.transport, device, quiesced)?;
        for queue in self.queues(device) {
            queue.restart(quiesced)?;
        }
        Ok(config)
    }

    fn is_same_but_for_size(&self, config: &DeviceConfig) -> bool {
        config.resized(self.config.capacity(), self.config.aperture_bytes()) == Ok(self.config)
    }

    /// Has the device put its memory behind the aperture, and checks that so much of it is
    /// there; see [`Self::start`].
    fn map_aperture(&self, device: &pci::Device<Bound>, wanted: u64) -> Result<bool> {
        // More than there was room for at probe cannot be shown.
        let wanted = wanted.min(self.config.aperture_bytes());
        let control = self.control(device);
        let header = RequestHeader::command(Opcode::MapAperture, 0, 0, 0);
        let command = control.try_acquire()?.prepare_command(header);
        let timeout = msecs_to_jiffies(HANDSHAKE_TIMEOUT_MS);
        let mapped = command.execute(Some(timeout));
        match mapped {
            Ok(bytes) if bytes >= wanted => Ok(self.aperture.is_some()),
            Ok(bytes) => {
                dev_warn!(
                    device,
                    "the device has mapped {} of {} bytes: there will be no mmap\n",
                    bytes,
                    wanted
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

    /// Hands out no more slots, and waits for the end of what is in flight, but not for ever.
    /// Sleeps.
    pub(crate) fn drain(&self, device: &pci::Device<Bound>) {
        for queue in self.queues.iter() {
            queue.freeze();
        }
        let start = Instant::<Monotonic>::now();
        while !self.queues(device).all(QueueRef::is_idle) {
            if start.elapsed() >= DRAIN_LIMIT {
                dev_warn!(
                    device,
                    "not all requests have ended: they are submitted again later\n"
                );
                return;
            }
            fsleep(DRAIN_PAUSE);
        }
    }

    /// Stops a device that runs, by a reset, and ends what was in flight as `unfinished` says.
    /// Does nothing to one that is down already. Sleeps.
    pub(crate) fn halt(
        &self,
        device: &pci::Device<Bound>,
        life: &mut Life,
        why: Why,
        unfinished: Unfinished,
    ) {
        if !matches!(life, Life::Running) {
            return;
        }
        self.events.stop();
        for queue in self.queues.iter() {
            queue.detach();
        }
        match self.transport.quiesce(device) {
            Ok(quiesced) => {
                for queue in self.queues(device) {
                    queue.reclaim(&quiesced, unfinished);
                }
                *life = Life::Down(quiesced, why);
            }
            Err(_) => {
                for queue in self.queues(device) {
                    queue.stop(EIO);
                    queue.abandon(EIO);
                }
                *life = Life::Unstoppable;
            }
        }
    }

    /// Ends with `error` what a device that is down was to get again. Sleeps.
    pub(crate) fn fail_waiting(&self, device: &pci::Device<Bound>, life: &Life, error: Error) {
        if let Life::Down(quiesced, _) = life {
            for queue in self.queues(device) {
                queue.stop(error);
                queue.reclaim(quiesced, Unfinished::Fail(error));
            }
        }
    }

    /// Those who wait for room in a queue.
    pub(crate) fn pollers(&self) -> &Arc<Pollers> {
        &self.pollers
    }

    /// The queue for commands of the driver.
    fn control<'a>(&'a self, device: &'a pci::Device<Bound>) -> QueueRef<'a> {
        QueueRef::new(self.queues.control(), &self.transport, device)
    }

    /// All request queues, in the device's order.
    fn queues<'a>(&'a self, device: &'a pci::Device<Bound>) -> impl Iterator<Item = QueueRef<'a>> {
        self.queues
            .iter()
            .map(|queue| QueueRef::new(queue, &self.transport, device))
    }

    /// Whether some submitter's queue has room; an error where they were stopped.
    /// Any context.
    pub(crate) fn has_room(&self) -> Result<bool> {
        for queue in self.queues.all_from_here() {
            if queue.has_room()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Number of I/O queues.
    pub(crate) fn io_queues(&self) -> usize {
        self.queues.io_count()
    }

    /// Whether polled requests have a queue of their own.
    pub(crate) fn has_polled_queue(&self) -> bool {
        self.queues.has_polled()
    }

    /// The used ring of the queue at `index` of the request queues.
    pub(crate) fn used_ring(&self, index: usize) -> Option<&SharedCoherent<u32>> {
        self.queues.iter().nth(index).map(|queue| queue.used_ring())
    }
}

/// What whoever has access to the hardware can do: the device is bound for so long.
impl Guard<'_, Hardware> {
    #[inline]
    fn queue_ref<'a>(&'a self, queue: &'a Queue) -> QueueRef<'a> {
        QueueRef::new(queue, &self.transport, self.device())
    }

    /// All queues that carry requests. Any context.
    pub(crate) fn request_queues(&self) -> impl Iterator<Item = QueueRef<'_>> {
        self.queues(self.device())
    }

    /// The queue for polled requests: the last I/O queue, if there are several. Any context.
    pub(crate) fn polled_queue(&self) -> QueueRef<'_> {
        self.queue_ref(self.queues.polled())
    }

    /// The I/O queue for a submitter on this CPU. Any context.
    #[inline]
    pub(crate) fn queue_here(&self) -> QueueRef<'_> {
        self.queue_ref(self.queues.here())
    }

    /// What `take` finds in the first I/O queue that has room, beginning with the one for this
    /// CPU. `take` answers `EAGAIN` where a queue has none; so does this where no queue has any.
    /// Any context that `take` may be called in.
    pub(crate) fn find_queue<'a, T>(
        &'a self,
        mut take: impl FnMut(QueueRef<'a>) -> Result<T>,
    ) -> Result<(QueueRef<'a>, T)> {
        for queue in self.queues.all_from_here() {
            let queue = self.queue_ref(queue);
            match take(queue) {
                Err(error) if error == EAGAIN => {}
                result => return result.map(|taken| (queue, taken)),
            }
        }
        Err(EAGAIN)
    }

    /// Does a kick that was deferred, or as much of it as `strategy` says. Task context; does
    /// not sleep.
    pub(crate) fn kick(&self, queue: u16, strategy: WaitStrategy) {
        if let Some(queue) = self.queues.by_index(queue) {
            self.queue_ref(queue).kick(strategy);
        }
    }

    /// The next event, as of [`EventQueue::receive`]. Any context.
    pub(crate) fn receive_event(&self) -> Option<Received> {
        self.events.receive(&self.transport, self.device())
    }

    /// Makes everything that was written durable. Sleeps. `EINTR` when killed; no other
    /// signal ends it, as with a disk.
    pub(crate) fn flush(&self) -> Result {
        if !self.config.supports(Opcode::Flush) {
            return Ok(());
        }
        let header = RequestHeader::command(Opcode::Flush, 0, 0, 0);
        self.execute(header, Signals::Fatal).map(|_| ())
    }

    /// Executes a request without data and returns its result. Sleeps. `EINTR` when
    /// killed; `signals` end the wait for a slot.
    pub(crate) fn execute(&self, header: RequestHeader, signals: Signals) -> Result<u64> {
        let queue = self.queue_here();
        queue
            .acquire(signals)?
            .prepare_command(header)
            .execute(None)
    }
}

impl Revoked for Hardware {
    /// Frees everything, but for what a device that cannot be stopped has in its hands.
    fn revoked(self, device: &pci::Device<Bound>) {
        {
            let mut life = self.life.lock();
            // Mostly so already.
            for queue in self.queues.iter() {
                queue.stop(ENODEV);
            }
            self.halt(device, &mut life, Why::Removed, Unfinished::Fail(ENODEV));
        }
        let Self {
            work,
            map_work,
            life,
            queues,
            events,
            recovery,
            ..
        } = self;
        recovery.detach();
        // What is queued finds the hardware revoked.
        drop(work);
        // This may have to wait for a process, as whoever revoked the hardware did.
        drop(map_work);
        if matches!(*life.lock(), Life::Unstoppable) {
            core::mem::forget((queues, events));
        }
    }
}
