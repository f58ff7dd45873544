// SPDX-License-Identifier: GPL-2.0

//! The memory of a slot for its requests, so that a request needs no allocation.

use super::{
    direction::Writes,
    list::{
        Segment,
        INLINE_SEGMENTS, //
    },
    ownership::Ownership,
    redirty::Redirty, //
};
use kernel::{
    dma::DataDirection,
    prelude::*, //
};

/// An empty list for segments, and memory to make pages dirty later, which belong to a slot.
///
/// [`CleanedPages`] take both with them. The next request replaces them.
///
/// [`CleanedPages`]: super::redirty::CleanedPages
///
/// # Invariants
///
/// `list` is empty: the contents of a mapped list belong to the request. `list` has no capacity
/// while a request has it.
pub(crate) struct Room {
    pub(super) list: KVec<Segment>,
    redirty: Option<Pin<KBox<Redirty>>>,
}

impl Room {
    /// Memory for as many segments as a call has without an allocation. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            list: KVec::with_capacity(INLINE_SEGMENTS, GFP_KERNEL)?,
            redirty: Some(Redirty::new(GFP_KERNEL)?),
        })
    }

    /// No memory, for requests without data.
    pub(crate) fn none() -> Self {
        Self {
            list: KVec::new(),
            redirty: None,
        }
    }

    /// Takes the list of a request back.
    pub(super) fn put_back(&mut self, mut list: KVec<Segment>) {
        // A list from the heap is freed; then the list of this room was never in use.
        if self.list.capacity() == 0 {
            list.clear();
            // Dropping the empty list would be a function call.
            core::mem::forget(core::mem::replace(&mut self.list, list));
        }
    }

    /// The way in which pages of `O` are held. Any context.
    #[inline]
    pub(super) fn take_hold<O: Ownership>(&mut self, direction: DataDirection) -> Result<Hold> {
        if !O::PINNED {
            return Ok(Hold::Reference);
        }
        if !direction.is_from_device() {
            return Ok(Hold::Pin);
        }
        Ok(Hold::WrittenPin(match self.redirty.take() {
            Some(redirty) => redirty,
            None => Redirty::new(GFP_NOWAIT)?,
        }))
    }

    /// Takes back the value of [`Self::take_hold`].
    pub(super) fn put_back_hold(&mut self, hold: Hold) {
        if let Hold::WrittenPin(redirty) = hold {
            self.redirty = Some(redirty);
        }
    }
}

/// The way in which the pages of a request are held.
pub(super) enum Hold {
    /// A reference to each folio of a segment.
    Reference,
    /// A pin of each page. The device only reads.
    Pin,
    /// A pin of each page. The device may write, so the pages have to be dirty in the end.
    WrittenPin(Pin<KBox<Redirty>>),
}
