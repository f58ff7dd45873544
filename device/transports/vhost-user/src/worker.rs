// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The queues of one thread.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringbar_model::QueueRole;
use ringbar_spec::{CONTROL_QUEUE, EVENT_QUEUE, FIRST_IO_QUEUE};

use crate::device::Device;
use crate::polling::Polling;
use crate::queue::{Next, Server, Shared, Turn};
use crate::ring::Ring;

/// The worker of control and event queue.
pub(crate) const CONTROL_WORKER: usize = 0;

/// Serves request queues, and looks at all of them for the next request.
pub(crate) struct Worker {
    servers: Vec<Server>,
    polling: Mutex<Polling>,
}

impl Worker {
    /// For the request queues in `mask`. The one of the control queue does not look for
    /// the next request: it is rare.
    fn new(mask: u64, device: &Device) -> Self {
        let servers: Vec<_> = queues(mask)
            .filter_map(|queue| match queue {
                EVENT_QUEUE => None,
                CONTROL_QUEUE => Some(Server::new(queue, QueueRole::Control, device)),
                _ => Some(Server::new(queue, QueueRole::Io, device)),
            })
            .collect();
        let poll = match queues(mask).any(|queue| queue == CONTROL_QUEUE) {
            true => Duration::ZERO,
            false => device.poll(),
        };
        Self {
            servers,
            polling: Mutex::new(Polling::new(poll)),
        }
    }

    /// Workers for queues that are distributed as of [`assign_queues`].
    pub(crate) fn for_masks(masks: &[u64], device: &Device) -> Vec<Self> {
        masks.iter().map(|mask| Self::new(*mask, device)).collect()
    }

    /// Serves the worker's queues, whose rings are the first of `rings` in order, until
    /// all are empty. Called by the thread of the worker only.
    pub(crate) fn serve(&self, shared: &Shared, rings: &[Ring]) {
        // Contended by nobody, and only a guess.
        let mut polling = self.polling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut looking = polling.is_due();
        let alone = self.servers.len() == 1;
        let queues = || self.servers.iter().zip(rings);
        loop {
            let turn = Turn { looking, alone };
            let next = queues()
                .map(|(server, ring)| server.serve(shared, ring, turn))
                .max();
            match next {
                Some(Next::Again) => {}
                Some(Next::Look) => looking = polling.poll(|now| self.look(shared, rings, now)),
                Some(Next::Wait) | None => return,
            }
        }
    }

    /// Whether there is a request in one of the rings; `None` where none is to be served
    /// as it is.
    fn look(&self, shared: &Shared, rings: &[Ring], now: Instant) -> Option<bool> {
        self.servers
            .iter()
            .zip(rings)
            .filter_map(|(server, ring)| server.look(shared, ring, now))
            .reduce(|any, found| any || found)
    }
}

/// Distributes the queues over workers: a mask of queues for each.
///
/// A worker that looks for requests takes a CPU, and the guest needs some to make
/// them: so the I/O queues get a worker for each two CPUs.
pub(crate) fn assign_queues(io_queues: u16, cpus: usize) -> Vec<u64> {
    let workers = usize::from(io_queues).min((cpus / 2).max(1));
    let mut masks = vec![0; 1 + workers];
    masks[CONTROL_WORKER] = 1 << CONTROL_QUEUE | 1 << EVENT_QUEUE;
    for queue in 0..io_queues {
        masks[1 + usize::from(queue) % workers] |= 1 << (FIRST_IO_QUEUE + queue);
    }
    masks
}

/// The queues in a mask, in order.
pub(crate) fn queues(mask: u64) -> impl Iterator<Item = u16> {
    (0..64).filter(move |bit| mask >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_one_worker() {
        for io_queues in [1, 2, 3, 4, 17, crate::MAX_IO_QUEUES] {
            for cpus in [1, 2, 3, 4, 8, 100] {
                let masks = assign_queues(io_queues, cpus);
                assert_eq!(masks[CONTROL_WORKER], 0b11);
                assert_eq!(masks.len() - 1, (cpus / 2).clamp(1, io_queues.into()));
                let all = masks.iter().fold(0, |all, mask| {
                    assert_ne!(*mask, 0);
                    assert_eq!(all & mask, 0, "a queue with two workers");
                    all | mask
                });
                let queues = u32::from(io_queues) + 2;
                assert_eq!(all, u64::MAX >> (64 - queues));
            }
        }
    }

    #[test]
    fn queues_of_a_mask_come_in_order() {
        assert!(queues(0b11).eq([0, 1]));
        assert!(queues(0b10100).eq([2, 4]));
        assert!(queues(1 << 63).eq([63]));
        assert_eq!(queues(0).count(), 0);
    }
}
