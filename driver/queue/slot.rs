// SPDX-License-Identifier: GPL-2.0

//! Everything that one request needs.
//!
//! A slot owns its request from the moment it is acquired until its status has been read.
//! Slots are allocated at probe and moved, as boxes; whoever has the box has the request:
//!
//! ```text
//!  free list -- acquire --> submitter -- submit --> table of requests in flight
//!   ^   ^                      |                     |                    |
//!   |   +------- dropped ------+                     | the device used it |
//!   |                                                v                    v
//!   |          thread that waits for it <-- is_sync -- reaping -- abandon --> the device's for ever
//!   |                      |                           |
//!   +------ release -------+------- release -----------+--> Completion: the caller is told
//! ```

use super::{
    buffers::RequestBuffers,
    completion::Completion, //
};
use crate::{
    abstractions::{
        dma::segments::CleanedPages,
        task::wait::KernelCompletion, //
    },
    virtio::ring::EntryId, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    sync::Arc, //
};

/// One request.
pub(crate) struct Slot {
    entry: EntryId,
    waiter: Arc<KernelCompletion>,
    /// What the device reads and writes.
    pub(super) buffers: RequestBuffers,
    /// Who is told when the request has ended.
    pub(super) completion: Completion,
    /// Number of watchdog ticks that it has been in flight.
    pub(super) age: u8,
}

impl Slot {
    /// Allocates the slot of ring entry `entry`, for transfers if `with_data`. May sleep.
    pub(super) fn new(
        device: &pci::Device<Bound>,
        entry: EntryId,
        with_data: bool,
    ) -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                entry,
                waiter: Arc::pin_init(KernelCompletion::new(), GFP_KERNEL)?,
                buffers: RequestBuffers::new(device, with_data)?,
                completion: Completion::Nobody,
                age: 0,
            },
            GFP_KERNEL,
        )?)
    }

    /// Number of the ring entry that belongs to this slot.
    #[inline]
    pub(super) fn entry(&self) -> EntryId {
        self.entry
    }

    /// What wakes the thread of [`Completion::Waiting`].
    #[inline]
    pub(super) fn waiter(&self) -> &Arc<KernelCompletion> {
        &self.waiter
    }

    /// Wakes the thread that sleeps until this request has ended, if there is one. Any context.
    #[inline]
    pub(super) fn wake_waiter(&self) {
        if matches!(self.completion, Completion::Waiting) {
            self.waiter.complete();
        }
    }

    /// Gives back what a request held that the device is done with; returns pages that have to
    /// be made dirty first. Any context.
    pub(super) fn release(&mut self, device: &pci::Device<Bound>) -> Option<CleanedPages> {
        let cleaned = self.buffers.release(device);
        self.completion = Completion::Nobody;
        self.age = 0;
        cleaned
    }

    /// Gives back what a request held that the device never had. Its caller is told last. Any
    /// context, no lock held.
    pub(super) fn give_up(&mut self, device: &pci::Device<Bound>) {
        self.buffers.give_up(device);
        self.completion = Completion::Nobody;
    }

    /// Leaves all that the request holds to a device that may use it for ever.
    pub(super) fn leak(self) {
        self.buffers.leak();
    }

    /// As [`Self::leak`], then as [`Self::wake_waiter`].
    pub(super) fn leak_and_wake(self) {
        let waiter = matches!(self.completion, Completion::Waiting).then(|| self.waiter.clone());
        self.leak();
        if let Some(waiter) = waiter {
            waiter.complete();
        }
    }
}
