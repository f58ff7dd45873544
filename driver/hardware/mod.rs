// SPDX-License-Identifier: GPL-2.0

//! The device while it is bound: its registers, queues and memory, behind an [`SrcuRevocable`]; see
//! [`crate::device`].
//!
//! [`SrcuRevocable`]: crate::abstractions::pci::revocable::SrcuRevocable
//!
//! A value behind a lock, [`Life`], says whether the device runs: the owner of the lock may stop
//! and start the device, and no other code does. The driver frees memory that the device knows only
//! with the proof that the device does not run ([`Quiesced`](crate::virtio::reset::Quiesced)).
//!
//! | file | contents |
//! |---|---|
//! | this one | the parts of the hardware, and their setup |
//! | `setup` | the negotiation, before there are queues |
//! | `life` | whether the device runs, with a diagram |
//! | `transitions` | start, drain and halt of the device; and its end |
//! | `access` | the operations of a [`Guard`]: submit, receive, flush |
//!
//! [`Guard`]: crate::abstractions::pci::revocable::Guard

mod access;
mod life;
mod setup;
mod transitions;

pub(crate) use life::{
    DownReason,
    Life, //
};
pub(crate) use setup::Negotiated;

use crate::{
    abstractions::{
        fs::poll::Pollers,
        mm::{
            shared_memory::SharedCoherent,
            vma::IoMemory, //
        },
        pci::device::ClaimedBar,
        task::work::WorkQueue, //
    },
    events::EventQueue,
    layout::{
        DeviceConfig,
        EVENT_QUEUE, //
    },
    module_parameters,
    queue::{
        buffers::Limits,
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
    vectors::Plan,
    virtio::transport::{
        feature,
        Transport, //
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
    time::Delta, //
};

/// Greatest value of module parameter `poll_us`, the busy-poll time of a request without data, in
/// microseconds: a task that busy-polls occupies a CPU meanwhile.
const MAX_POLL_US: u32 = 1000;

/// The value of module parameter `poll_us`.
fn poll_limit() -> Option<Delta> {
    let micros = module_parameters::poll_us.value();
    (micros > 0).then(|| Delta::from_micros(micros.min(MAX_POLL_US).into()))
}

/// Registers, queues and memory of a device.
pub(crate) struct Hardware {
    transport: Transport,
    features: u64,
    config: DeviceConfig,
    plan: Plan,
    events: Arc<EventQueue>,
    queues: Queues,
    pollers: Arc<Pollers>,
    aperture: Option<IoMemory>,
    limits: Limits,
    recovery: Arc<Recovery>,
    life: Pin<KBox<Mutex<Life>>>,
    /// For the work item of the recovery, which is detached before this queue is destroyed.
    work: Arc<WorkQueue>,
    /// For items that wait for processes with maps, which may take any time: no other work may wait
    /// behind them.
    map_work: WorkQueue,
}

impl Hardware {
    /// Sets up all queues of a device whose interrupts are as `plan` says. The device is not
    /// started. `aperture_bar` is the BAR with the transport's shared memory region. May sleep.
    pub(crate) fn new(
        device: &pci::Device<Bound>,
        negotiated: Negotiated,
        plan: Plan,
        aperture_bar: Option<ClaimedBar>,
        max_segment_bytes: usize,
        stats: &Arc<Stats>,
        recovery: Arc<Recovery>,
    ) -> Result<Self> {
        let Negotiated {
            transport,
            quiesced,
            features,
            config,
            share,
        } = negotiated;
        let pollers = Arc::pin_init(Pollers::new(), GFP_KERNEL)?;
        let event_idx = features & feature::EVENT_IDX != 0;
        let events = EventQueue::new(
            &transport,
            device,
            EVENT_QUEUE,
            plan.other_queues(),
            event_idx,
        )?;

        let poll_limit = poll_limit();
        let queues = Queues::new(share, |index, role| {
            Queue::new(
                &transport,
                device,
                &Config {
                    index,
                    size: role.size(),
                    event_idx,
                    message: match role {
                        Role::Control | Role::Polled => plan.other_queues(),
                        Role::Io(n) => plan.io_queue(n),
                    },
                    polled: matches!(role, Role::Polled),
                    poll_limit,
                    with_data: !matches!(role, Role::Control),
                },
                stats.clone(),
                recovery.clone(),
                pollers.clone(),
            )
        })?;

        // The smallest queue counts, so that a request that fits into it fits into each.
        let queue_size = queues.iter().skip(1).map(|queue| queue.size()).min();
        let limits = Limits::new(
            config.max_request_bytes() as usize,
            usize::from(config.max_segments()),
            max_segment_bytes,
            queue_size.unwrap_or(0),
        );

        // The region may be larger than the aperture, because its size is a power of two.
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
            plan,
            events,
            queues,
            pollers,
            aperture,
            limits,
            recovery,
            life: KBox::pin_init(
                new_mutex!(Life::Down(quiesced, DownReason::New), "ringbar_life"),
                GFP_KERNEL,
            )?,
            work: Arc::new(WorkQueue::new()?, GFP_KERNEL)?,
            map_work: WorkQueue::new()?,
        })
    }

    /// The configuration of the device.
    pub(crate) fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The plan of the interrupt vectors.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Limits of a request.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The device memory that user space may map, if there is an aperture.
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

    /// The queue for work that waits for processes with maps.
    pub(crate) fn map_work(&self) -> &WorkQueue {
        &self.map_work
    }

    /// Whether the device has broken a queue since it was set up. True also for a device that is
    /// down because of an error. Any context.
    pub(crate) fn is_broken(&self) -> bool {
        self.events.is_broken() || self.queues.iter().any(Queue::is_failed)
    }

    /// Whether the device runs; the owner of this lock may change that.
    pub(crate) fn life(&self) -> &Mutex<Life> {
        &self.life
    }

    /// The threads that wait for a free slot.
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

    /// Whether an I/O queue for submitters has a free slot; an error if the queues were stopped.
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

    /// The used ring of request queue `index`.
    pub(crate) fn used_ring(&self, index: usize) -> Option<&SharedCoherent<u32>> {
        self.queues.iter().nth(index).map(|queue| queue.used_ring())
    }
}
