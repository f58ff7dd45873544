// SPDX-License-Identifier: GPL-2.0

//! Pages that were cleaned while a device could write to them, and are to be made dirty again.

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

/// Pages that a device wrote to and that are to be made dirty before their release. Dropping this
/// does both, which sleeps, and may take any time: the thread must hold nothing that others need.
#[must_use = "dropping them sleeps"]
pub(crate) struct CleanedPages(Pin<KBox<Redirty>>);

impl CleanedPages {
    /// The pages of `list`, in memory that was allocated for that before.
    ///
    /// # Safety
    ///
    /// Each page of a segment in `list` must have a pin that this call takes over; the pages of a
    /// segment must be contiguous.
    pub(super) unsafe fn new(mut memory: Pin<KBox<Redirty>>, list: KVec<Segment>) -> Self {
        // INVARIANT: By the requirement.
        *memory.as_mut().project().list = list;
        Self(memory)
    }

    /// Makes a work item of `queue` drop the pages. Any context.
    pub(crate) fn drop_later(self, queue: &WorkQueue) {
        queue.enqueue(self.0);
    }
}

/// Pages to be made dirty, and the work item that does so later; allocated before, because no error
/// may occur then.
///
/// # Invariants
///
/// Each page of a segment in `list` has one pin of ours; the pages of a segment are contiguous.
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
    /// Memory for the list, without pages.
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
        // SAFETY: By the type invariant the pins are ours, and are not used after this.
        unsafe { unpin(&self.list, true) };
    }
}
