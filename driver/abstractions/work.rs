// SPDX-License-Identifier: GPL-2.0

//! Waiting for work items, so that none runs when the module is unloaded.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use kernel::{
    bindings,
    workqueue::Work, //
};

/// Waits until the item is neither queued nor running. Sleeps. Nobody may queue
/// it any more when this matters.
pub(crate) fn flush<T: ?Sized, const ID: u64>(work: &Work<T, ID>) {
    // SAFETY: The item is initialised, and borrowed for the call.
    unsafe { bindings::flush_work(Work::raw_get(work)) };
}
