// SPDX-License-Identifier: GPL-2.0

//! What a slot keeps for its requests, so that there is nothing to allocate.

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
/// [`CleanedPages`] take both with them. The next request makes up for that.
///
/// [`CleanedPages`]: super::redirty::CleanedPages
///
/// # Invariants
///
/// `list` is empty: what is in a list that is mapped belongs to the request. It has no capacity
/// while it is in a request.
pub(crate) struct Room {
    pub(super) list: KVec<Segment>,
    redirty: Option<Pin<KBox<Redirty>>>,
}

impl Room {
    /// Room for as many segments as a call has without an allocation. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            list: KVec::with_capacity(INLINE_SEGMENTS, GFP_KERNEL)?,
            redirty: Some(Redirty::new(GFP_KERNEL)?),
        })
    }

    /// No room at all, for requests without data.
    pub(crate) fn none() -> Self {
        Self {
            list: KVec::new(),
            redirty: None,
        }
    }

    /// Takes back the list that was lent.
    pub(super) fn put_back(&mut self, mut list: KVec<Segment>) {
        // One from the heap is freed; the other was never lent then.
        if self.list.capacity() == 0 {
            list.clear();
            // To drop the empty one is a call.
            core::mem::forget(core::mem::replace(&mut self.list, list));
        }
    }

    /// How pages of `O` are held. Any context.
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

    /// Takes back what [`Self::take_hold`] has lent.
    pub(super) fn put_back_hold(&mut self, hold: Hold) {
        if let Hold::WrittenPin(redirty) = hold {
            self.redirty = Some(redirty);
        }
    }
}

/// What keeps the pages of a request.
pub(super) enum Hold {
    /// A reference to each folio of a segment.
    Reference,
    /// A pin of each page. The device only reads.
    Pin,
    /// A pin of each page. The device may write, so the pages have to be dirty in the end.
    WrittenPin(Pin<KBox<Redirty>>),
}
