// SPDX-License-Identifier: GPL-2.0

//! Interrupt vectors, each with the queues that it serves.
//!
//! One vector serves all queues today: each queue can tell whether it has work.

use crate::{
    abstractions::pci::irq,
    device::Device,
    queue::reap::Budget, //
};
use core::ops::Range;
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// The handler of one vector.
pub(crate) struct VectorHandler {
    device: Arc<Device>,
    /// Positions of its queues among the request queues.
    queues: Range<usize>,
    /// Whether the event queue is one of them.
    events: bool,
}

impl VectorHandler {
    /// The handler of the only vector of `device`. May sleep.
    pub(crate) fn only(device: Arc<Device>) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                device,
                queues: 0..usize::MAX,
                events: true,
            },
            GFP_KERNEL,
        )?)
    }
}

impl irq::Handler for VectorHandler {
    fn handle(this: ArcBorrow<'_, Self>) -> bool {
        let device = &this.device;
        device.stats().interrupt();
        if let Ok(hardware) = device.hardware() {
            let mut budget = Budget::for_interrupt();
            for queue in hardware
                .request_queues()
                .take(this.queues.end)
                .skip(this.queues.start)
            {
                queue.reap_after_interrupt(&mut budget);
            }
            if this.events {
                device.handle_events(&hardware);
            }
        }
        // With MSI-X no other device shares the line.
        true
    }
}
