// SPDX-License-Identifier: GPL-2.0

//! Pages that come back from a device.

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

/// Pages that a device has used, or could have used. Dropped, they go back, dirty where it
/// could write to them, which sleeps.
///
/// # Invariants
///
/// Each page of a segment in `list` bears one pin of ours, or each folio of a segment one
/// reference, as `hold` says; the pages of a segment are contiguous. `hold` has the memory of
/// [`Hold::WrittenPin`] where the device could write to pinned pages.
///
/// This folder keeps that: outside of it nobody can make or change one.
pub(crate) struct Pages {
    pub(super) list: KVec<Segment>,
    pub(super) hold: Hold,
    pub(super) direction: DataDirection,
}

// SAFETY: Pages may be unpinned by any thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Gives the pages back, and the list to `room`. Any context.
    ///
    /// Returns the pages where one that the device wrote to was cleaned in the meantime, and
    /// must be made dirty again.
    pub(crate) fn release(mut self, room: &mut Room) -> Option<CleanedPages> {
        if let Hold::WrittenPin(_) = self.hold {
            // SAFETY: By the type invariant these pages are pinned.
            if !unsafe { all_dirty(&self.list) } {
                return self.take_cleaned();
            }
        }
        self.give_up(room);
        None
    }

    /// As [`Self::release`], for pages that the device has not written to: it was never told
    /// of them. They go back as they are. Any context.
    pub(crate) fn give_up(self, room: &mut Room) {
        // Not dropped: there is nothing left of it, and to drop an empty list is a call.
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
                // INVARIANT: The pins go over with the list, and nothing is left in ours.
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
        // SAFETY: By the type invariant the pins or references are ours, and this is the end of
        // them.
        unsafe {
            match self.hold {
                Hold::Reference => unreference(&self.list),
                Hold::Pin => unpin(&self.list, false),
                Hold::WrittenPin(_) => unpin(&self.list, true),
            }
        }
    }
}
