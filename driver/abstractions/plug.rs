// SPDX-License-Identifier: GPL-2.0

//! Doing something once at the end of a batch of submissions.
//!
//! io_uring and libaio "plug" the task while they submit several requests.
//! What is put off with [`defer`] is done when the batch ends, or when the task
//! goes to sleep before.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// What has something to do at the end of a batch.
pub(crate) trait Unplug: Send + Sync + 'static {
    /// The batch of the current task has ended, because the task is about to sleep
    /// where `scheduled` says so. Must not sleep.
    fn unplug(this: ArcBorrow<'_, Self>, scheduled: bool);
}

/// The kernel's callback, which it allocates zeroed, and whether it holds a
/// reference to its data yet.
#[repr(C)]
struct Callback {
    inner: bindings::blk_plug_cb,
    armed: bool,
}

/// Calls `T::unplug` at the end of the current task's batch, however often
/// this is called until then. Task context; does not sleep.
///
/// Returns false where there is no batch; then nothing is called.
pub(crate) fn defer<T: Unplug>(target: ArcBorrow<'_, T>) -> bool {
    let target = Arc::from(target);
    // SAFETY: The callback takes its data for an `Arc<T>`, which it owns once it is armed. The size
    // is that of a structure that begins with the one expected.
    let callback = unsafe {
        bindings::blk_check_plugged(
            Some(unplug::<T>),
            Arc::as_ptr(&target).cast_mut().cast(),
            // CAST: A small constant.
            size_of::<Callback>() as c_int,
        )
    }
    .cast::<Callback>();
    if callback.is_null() {
        return false;
    }
    // SAFETY: Either new and zeroed, or made by an earlier call here: only this function passes
    // this callback. It belongs to the current task.
    unsafe {
        if !(*callback).armed {
            (*callback).armed = true;
            let _ = Arc::into_raw(target);
        }
    }
    true
}

/// # Safety
///
/// `callback` must be an armed [`Callback`] for a `T`, off its list.
unsafe extern "C" fn unplug<T: Unplug>(callback: *mut bindings::blk_plug_cb, scheduled: bool) {
    // SAFETY: Armed, so the data is a reference that was leaked for us.
    let target = unsafe { Arc::from_raw((*callback).data.cast_const().cast::<T>()) };
    // SAFETY: The callback is ours to free; it was allocated with `kzalloc`.
    unsafe { bindings::kfree(callback.cast()) };
    T::unplug(target.as_arc_borrow(), scheduled);
}
