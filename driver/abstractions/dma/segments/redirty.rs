// SPDX-License-Identifier: GPL-2.0

//! Pages that were cleaned while a device could write to them, and are to be made dirty once
//! more.

use super::{
    folios::unpin,
    list::Segment, //
};
use crate::abstractions::task::work::WorkQueue;
use kernel::{
    impl_has_work,
    new_work,
    prelude::*,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// Pages that a device wrote to and that are to be made dirty before they go back. That is
/// done when they are dropped, which sleeps for as long as others like: whoever drops them
/// must hold nothing that somebody else needs.
#[must_use = "dropping them sleeps"]
pub(crate) struct CleanedPages(Pin<KBox<Redirty>>);

impl CleanedPages {
    /// The pages of `list`, in memory that was allocated for that before.
    ///
    /// # Safety
    ///
    /// Each page of a segment in `list` must bear a pin that the caller gives away with this
    /// call; the pages of a segment must be contiguous.
    pub(super) unsafe fn new(mut memory: Pin<KBox<Redirty>>, list: KVec<Segment>) -> Self {
        // INVARIANT: By the requirement.
        *memory.as_mut().project().list = list;
        Self(memory)
    }

    /// Has them dropped by `queue`. Any context.
    pub(crate) fn drop_later(self, queue: &WorkQueue) {
        queue.enqueue(self.0);
    }
}

/// Pages to be made dirty, and what is needed to have that done later; allocated before,
/// because there must be no error then.
///
/// # Invariants
///
/// Each page of a segment in `list` bears one pin of ours; the pages of a segment are
/// contiguous.
#[pin_data(PinnedDrop)]
pub(super) struct Redirty {
    list: KVec<Segment>,
    #[pin]
    work: Work<Redirty>,
}

impl_has_work! {
    impl HasWork<Self> for Redirty { self.work }
}

impl Redirty {
    /// Nothing to be made dirty.
    pub(super) fn new(flags: kernel::alloc::Flags) -> Result<Pin<KBox<Self>>> {
        // INVARIANT: There are no pages.
        KBox::pin_init(
            pin_init!(Self {
                list: KVec::new(),
                work <- new_work!("ringbar_redirty"),
            }),
            flags,
        )
    }
}

impl WorkItem for Redirty {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        drop(this);
    }
}

#[pinned_drop]
impl PinnedDrop for Redirty {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the pins are ours, and this is the end of them.
        unsafe { unpin(&self.list, true) };
    }
}
