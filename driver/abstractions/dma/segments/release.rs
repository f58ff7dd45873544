// SPDX-License-Identifier: GPL-2.0

//! Pages that a device no longer accesses.

use super::{
    folios::{
        all_dirty,
        unpin,
        unreference, //
    },
    list::Segment,
    redirty::CleanedPages,
    room::{
        Hold,
        Room, //
    }, //
};
use kernel::{
    dma::DataDirection,
    prelude::*, //
};

/// Pages that a device has accessed, or could have accessed. Dropping this releases them, dirty if
/// the device could write to them, which sleeps.
///
/// # Invariants
///
/// Each page of a segment in `list` has one pin of ours, or each folio of a segment one reference,
/// as `hold` says; the pages of a segment are contiguous. `hold` has the memory of
/// [`Hold::WrittenPin`] if the device could write to pinned pages.
///
/// This folder ensures the invariants: no code outside of it can create or change such a value.
pub(crate) struct Pages {
    pub(super) list: KVec<Segment>,
    pub(super) hold: Hold,
    pub(super) direction: DataDirection,
}

// SAFETY: Any thread may unpin pages.
unsafe impl Send for Pages {}

impl Pages {
    /// Releases the pages, and returns the list to `room`. Any context.
    ///
    /// Returns the pages if one that the device wrote to was cleaned in the meantime, and must be
    /// made dirty again.
    #[inline(always)]
    pub(crate) fn release(mut self, room: &mut Room) -> Option<CleanedPages> {
        if let Hold::WrittenPin(_) = self.hold {
            // SAFETY: By the type invariant these pages are pinned.
            if !unsafe { all_dirty(&self.list) } {
                return self.take_cleaned();
            }
        }
        self.release_clean(room);
        None
    }

    /// As [`Self::release`], for pages of a request that the device never had, so that it has not
    /// written to them. The pages are not made dirty. Any context.
    #[inline(always)]
    pub(crate) fn release_clean(self, room: &mut Room) {
        // Not dropped: nothing is left in it, and dropping an empty list is a function call.
        let mut this = core::mem::ManuallyDrop::new(self);
        let list = core::mem::take(&mut this.list);
        // SAFETY: By the type invariant the pins or references are ours, and `this` is not dropped.
        unsafe {
            match this.hold {
                Hold::Reference => unreference(&list),
                Hold::Pin | Hold::WrittenPin(_) => unpin(&list, false),
            }
        }
        room.put_back_hold(core::mem::replace(&mut this.hold, Hold::Reference));
        room.put_back(list);
    }

    /// The pages of [`Hold::WrittenPin`].
    fn take_cleaned(&mut self) -> Option<CleanedPages> {
        match core::mem::replace(&mut self.hold, Hold::Reference) {
            Hold::WrittenPin(redirty) => {
                // INVARIANT: The pins move with the list, and our list is empty.
                let list = core::mem::take(&mut self.list);
                // SAFETY: By the type invariant the pins are ours, and the pages of a segment
                // contiguous.
                Some(unsafe { CleanedPages::new(redirty, list) })
            }
            other => {
                self.hold = other;
                None
            }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pins or references are ours, and are not used after
        // this.
        unsafe {
            match self.hold {
                Hold::Reference => unreference(&self.list),
                Hold::Pin => unpin(&self.list, false),
                Hold::WrittenPin(_) => unpin(&self.list, true),
            }
        }
    }
}
