// SPDX-License-Identifier: GPL-2.0

//! Doing something once at the end of a batch of submissions.
//!
//! io_uring and libaio "plug" the task while they submit several requests.
//! What is put off with [`defer`] is done when the batch ends, or when the task
//! goes to sleep before.
//!
//! By then the files of the batch may be closed: nobody else may have them, or the
//! module. So the callback holds a file: with it the device that it was opened on, and
//! the module, which is let go by the kernel's own code, when ours has returned. Giving a
//! file back never sleeps, and its end follows when the task may sleep.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::abstractions::helpers::ringbar_list_del;
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    sync::ArcBorrow, //
};

/// What has something to do at the end of a batch.
pub(crate) trait Unplug: Send + Sync + 'static {
    /// The batch of the current task has ended, because the task is about to sleep
    /// where `scheduled` says so. Must not sleep.
    fn unplug(this: ArcBorrow<'_, Self>, scheduled: bool);
}

/// The kernel's callback, which it allocates zeroed, and a reference to the file that
/// keeps its data alive, once there is one.
#[repr(C)]
struct Callback {
    inner: bindings::blk_plug_cb,
    file: Option<NonNull<bindings::file>>,
}

/// The callback for `target` of the current task's batch; none where there is no batch, or
/// no memory. Task context; does not sleep.
fn callback<T: Unplug>(target: ArcBorrow<'_, T>) -> Option<NonNull<Callback>> {
    // SAFETY: The callback looks at its data only once it has a file. The size is that of a
    // structure that begins with the one expected.
    let callback = unsafe {
        bindings::blk_check_plugged(
            Some(unplug::<T>),
            core::ptr::from_ref(&*target).cast_mut().cast(),
            // CAST: A small constant.
            size_of::<Callback>() as c_int,
        )
    };
    NonNull::new(callback.cast())
}

/// Prepares for [`defer`] within a call on `file`. Task context; does not sleep.
///
/// Returns false where there is no batch; then there is none later in the call, because it
/// belongs to whoever makes the call.
///
/// # Safety
///
/// `file` must be valid, hold a reference to `target` until its end, and belong to
/// this module.
pub(in crate::abstractions) unsafe fn prepare<T: Unplug>(
    file: NonNull<bindings::file>,
    target: ArcBorrow<'_, T>,
) -> bool {
    let Some(callback) = callback(target) else {
        return false;
    };
    // SAFETY: The callback belongs to the current task, and is one of `Callback`: only here it
    // is made, with `unplug::<T>` in it.
    let held = unsafe { &mut (*callback.as_ptr()).file };
    if held.is_none() {
        // SAFETY: Valid by the requirement.
        unsafe { bindings::get_file(file.as_ptr()) };
        *held = Some(file);
    }
    true
}

/// Calls `T::unplug` at the end of the current task's batch, however often
/// this is called until then. Task context; does not sleep.
///
/// Returns false where there is no batch; then nothing is called.
pub(crate) fn defer<T: Unplug>(target: ArcBorrow<'_, T>) -> bool {
    let Some(callback) = callback(target) else {
        return false;
    };
    let callback = callback.as_ptr();
    // SAFETY: As in `prepare`.
    if unsafe { (*callback).file.is_some() } {
        return true;
    }
    // The task has slept since `prepare`, which has ended the batch so far, and this one is new.
    // It must not stay: nothing would keep the module until it is called.
    // SAFETY: The callback is on the list of the current task, which nobody else uses, and was
    // allocated with `kzalloc`.
    unsafe {
        ringbar_list_del(&raw mut (*callback).inner.list);
        bindings::kfree(callback.cast());
    }
    false
}

/// # Safety
///
/// `callback` must be a [`Callback`] for a `T`, off its list.
unsafe extern "C" fn unplug<T: Unplug>(callback: *mut bindings::blk_plug_cb, scheduled: bool) {
    // SAFETY: By the requirement.
    let (data, file) = unsafe { ((*callback).data, (*callback.cast::<Callback>()).file) };
    // SAFETY: The callback is ours to free; it was allocated with `kzalloc`.
    unsafe { bindings::kfree(callback.cast()) };
    if let Some(file) = file {
        // SAFETY: By the requirement of `prepare`, the file holds a reference to the data, and
        // the callback one to the file.
        let data = unsafe { ArcBorrow::from_raw(data.cast_const().cast()) };
        T::unplug(data, scheduled);
        // SAFETY: The reference is that of the callback.
        unsafe { bindings::fput(file.as_ptr()) };
    }
}
