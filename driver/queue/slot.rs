// SPDX-License-Identifier: GPL-2.0

//! Memory and state of one request.
//!
//! A slot owns its request from the moment it is acquired until the driver has read its status.
//! Slots are allocated at probe and moved, as boxes; the owner of the box owns the request:
//!
//! ```text
//!  free list -- acquire --> submitter -- submit --> table of requests in flight
//!   ^   ^                      |                     |                    |
//!   |   +------- dropped ------+                     | the device used it |
//!   |                                                v                    v
//!   |          thread that waits for it <-- is_sync -- reaping -- abandon --> the device's for ever
//!   |                      |                           |
//!   +------ release -------+------- release -----------+--> Completion: notifies the caller
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
    /// The memory that the device reads and writes.
    pub(super) buffers: RequestBuffers,
    /// The value that notifies the caller of the request.
    pub(super) completion: Completion,
    /// Number of watchdog ticks for which the request has been in flight.
    pub(super) age: u16,
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

    /// The kernel's completion on which the thread of [`Completion::Waiting`] sleeps.
    #[inline]
    pub(super) fn waiter(&self) -> &Arc<KernelCompletion> {
        &self.waiter
    }

    /// Wakes the thread that sleeps until this request has completed, if there is one. Any context.
    #[inline]
    pub(super) fn wake_waiter(&self) {
        if matches!(self.completion, Completion::Waiting) {
            self.waiter.complete();
        }
    }

    /// Releases the pages of a request that the device has completed; returns those that have to be
    /// made dirty before their release. Any context.
    #[inline(always)]
    pub(super) fn release(&mut self, device: &pci::Device<Bound>) -> Option<CleanedPages> {
        let cleaned = self.buffers.release(device);
        self.completion = Completion::Nobody;
        self.age = 0;
        cleaned
    }

    /// Releases the pages of a request that the device never had. Its caller is notified last. Any
    /// context, no lock held.
    pub(super) fn release_clean(&mut self, device: &pci::Device<Bound>) {
        self.buffers.release_clean(device);
        self.completion = Completion::Nobody;
    }

    /// Leaks all memory of the request, because the device may use it for ever.
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
