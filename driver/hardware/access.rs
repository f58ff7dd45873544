// SPDX-License-Identifier: GPL-2.0

//! Operations on the hardware, for code that has access to it.

use super::Hardware;
use crate::{
    abstractions::{
        pci::revocable::Guard,
        task::wait::Signals, //
    },
    events::Received,
    layout::{
        Opcode,
        RequestHeader, //
    },
    queue::{
        poll_policy::WaitStrategy,
        state::{
            Queue,
            QueueRef, //
        }, //
    },
    virtio::isr::Raised, //
};
use core::ops::Range;
use kernel::prelude::*;

/// The operations of a [`Guard`], during which the device is bound.
impl Guard<'_, Hardware> {
    #[inline(always)]
    fn queue_ref<'a>(&'a self, queue: &'a Queue) -> QueueRef<'a> {
        QueueRef::new(queue, &self.transport, self.device())
    }

    /// All queues that carry requests. Any context.
    pub(crate) fn request_queues(&self) -> impl Iterator<Item = QueueRef<'_>> {
        self.queues(self.device())
    }

    /// The I/O queues for submitters with these numbers. Any context.
    #[inline]
    pub(crate) fn submit_queues(&self, numbers: Range<u16>) -> impl Iterator<Item = QueueRef<'_>> {
        self.queues
            .submit_queues(numbers)
            .map(|queue| self.queue_ref(queue))
    }

    /// The request queues that are no I/O queues for submitters. Any context.
    pub(crate) fn other_queues(&self) -> impl Iterator<Item = QueueRef<'_>> {
        self.queues
            .other_queues()
            .map(|queue| self.queue_ref(queue))
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

    /// Calls `take` for the I/O queues, beginning with the one for this CPU, until one has a free
    /// slot. `take` returns `EAGAIN` if a queue has none; so does this function if no queue has
    /// one. Any context that `take` allows.
    #[inline(always)]
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

    /// Executes a deferred kick, as `strategy` says. Task context; does not sleep.
    pub(crate) fn kick(&self, queue: u16, strategy: WaitStrategy) {
        if let Some(queue) = self.queues.by_index(queue) {
            self.queue_ref(queue).kick(strategy);
        }
    }

    /// Takes the next event, as [`EventQueue::receive`]. Any context.
    pub(crate) fn receive_event(&self, handle: impl FnOnce(Received)) -> bool {
        self.events.receive(&self.transport, self.device(), handle)
    }

    /// The reasons for which the device has raised its line; `None` if it has not. Clears them. Any
    /// context.
    pub(crate) fn take_raised(&self) -> Option<Raised> {
        self.transport.take_raised(self.device())
    }

    /// Whether the configuration has changed since it was read. Any context.
    pub(crate) fn has_new_config(&self) -> bool {
        self.transport.has_new_config(self.device())
    }

    /// Makes all written data durable. Sleeps. `EINTR` when killed; no other signal ends it, as
    /// with a disk.
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
