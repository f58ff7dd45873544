// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Delivery of events over the event queue.

use std::sync::{Mutex, PoisonError};

use ringbar_model::ChainHead;
use ringbar_model::event::EventQueue;
use ringbar_spec::{EVENT_QUEUE, QueueFault};
use tracing::warn;
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::counters::Counts;
use crate::moderation::wants_interrupt;
use crate::queue::Shared;
use crate::ring::{Memory, Ring, is_started, signal};

/// The event queue.
#[derive(Default)]
pub(crate) struct EventServer {
    queue: Mutex<EventQueue>,
}

impl EventServer {
    /// Delivers pending events as far as the driver has put buffers in the
    /// ring. Called by the queue's worker only.
    pub(crate) fn serve(&self, shared: &Shared, ring: &Ring) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vring = ring.get_mut();
        let mut counts = Counts {
            kicks: ring.take_kicks(),
            ..Counts::default()
        };
        if let Err(fault) = deliver(shared, ring, &mut vring, &mut queue, &mut counts) {
            // There is no queue left to report this one on.
            ring.set_broken();
            counts.broken_queues = 1;
            warn!(
                queue = EVENT_QUEUE,
                ?fault,
                "driver broke the event queue: not served until it resets the device"
            );
        }
        drop(vring);
        shared.device.counters().add(&counts);
    }
}

fn deliver(
    shared: &Shared,
    ring: &Ring,
    vring: &mut VringState<Memory>,
    events: &mut EventQueue,
    counts: &mut Counts,
) -> Result<(), QueueFault> {
    if ring.is_broken() || !is_started(vring) {
        return Ok(());
    }
    let guard = shared.memory.get();
    let mem: &GuestMemoryMmap = &guard;
    if mem.num_regions() == 0 {
        return Ok(());
    }
    if !ring.is_valid(vring, mem) {
        return Err(QueueFault::Ring);
    }
    let posted = post(shared, vring, mem, events, counts);
    if counts.events > 0 && wants_interrupt(vring, mem)? {
        counts.interrupts += u64::from(signal(vring));
    }
    posted
}

fn post(
    shared: &Shared,
    vring: &mut VringState<Memory>,
    mem: &GuestMemoryMmap,
    events: &mut EventQueue,
    counts: &mut Counts,
) -> Result<(), QueueFault> {
    let queue = vring.get_queue_mut();
    while let Some(event) = shared.events.front() {
        let Some(chain) = queue.iter(mem).map_err(|_| QueueFault::Ring)?.next() else {
            // No buffer: have the driver kick when it adds one.
            if queue
                .enable_notification(mem)
                .map_err(|_| QueueFault::Ring)?
            {
                continue;
            }
            break;
        };
        let head = ChainHead {
            table: GuestAddress(queue.desc_table()),
            queue_size: queue.size(),
            index: chain.head_index(),
        };
        let used_len = events.post(mem, head, event)?;
        queue
            .add_used(mem, head.index, used_len)
            .map_err(|_| QueueFault::Ring)?;
        shared.events.delivered(event);
        counts.events += 1;
    }
    Ok(())
}
