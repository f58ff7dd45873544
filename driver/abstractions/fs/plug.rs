// SPDX-License-Identifier: GPL-2.0

//! Kicking a device once at the end of a batch of submissions.
//!
//! io_uring and libaio "plug" the task while they submit several requests. A kick that is deferred
//! with [`defer_kick`] is executed when the batch ends, or when the task goes to sleep before. It
//! belongs to the task, so it needs no synchronisation.
//!
//! By then the files of the batch may be closed, and the callback may have the last reference to
//! them, or to the module. So the callback has a reference to a file: the file keeps the device on
//! which it was opened, and the module. The kernel's own code releases the module when our function
//! has returned. Releasing a file never sleeps, and the end of the file follows when the task may
//! sleep.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::abstractions::helpers::ringbar_list_del;
use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::ArcBorrow, //
};

/// A kick that was not executed yet: a doorbell to be rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeferredKick {
    /// Index of the queue.
    pub(crate) queue: u16,
    /// Number of bytes that the requests transfer together, if busy-polling for them is worthwhile.
    pub(crate) poll_bytes: Option<usize>,
}

impl DeferredKick {
    /// Merges this kick and a later one; `None` if they are for different queues.
    fn merge(self, later: Self) -> Option<Self> {
        let poll_bytes = match (self.poll_bytes, later.poll_bytes) {
            (Some(one), Some(two)) => Some(one.saturating_add(two)),
            _ => None,
        };
        (self.queue == later.queue).then_some(Self {
            poll_bytes,
            ..later
        })
    }
}

/// The result of deferring a kick.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "without a batch, the kick is for the caller to do"]
pub(crate) enum Deferral {
    /// The kick is executed at the end of the batch.
    Deferred,
    /// The kick was deferred too. The caller has to execute this earlier one, which is for another
    /// queue.
    Replaced(DeferredKick),
    /// There is no batch: the caller has to execute the kick.
    NoBatch,
}

/// An object that is kicked at the end of a batch.
pub(crate) trait Unplug: Send + Sync + 'static {
    /// Executes `kick` at the end of the current task's batch; `scheduled` says that the batch ends
    /// because the task is about to sleep. Must not sleep. Never called for an object whose kicks
    /// are not deferred.
    fn unplug(_this: ArcBorrow<'_, Self>, _kick: DeferredKick, _scheduled: bool) {}
}

/// The kernel's callback, which it allocates zeroed, and a reference to the file that keeps the
/// callback's data alive, once there is one.
#[repr(C)]
struct Callback {
    inner: bindings::blk_plug_cb,
    file: Option<NonNull<bindings::file>>,
    /// Whether `kick` is initialised.
    deferred: bool,
    kick: MaybeUninit<DeferredKick>,
}

/// The callback for `target` of the current task's batch; `None` without a batch or without memory.
/// Task context; does not sleep.
fn callback<T: Unplug>(target: ArcBorrow<'_, T>) -> Option<NonNull<Callback>> {
    // SAFETY: The callback accesses its data only once it has a file. The size is that of a
    // structure that begins with a `struct blk_plug_cb`.
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

/// Prepares for [`defer_kick`] within a call on `file`. Task context; does not sleep.
///
/// Returns false if there is no batch; then none begins later in the call, because a batch belongs
/// to the code that makes the call.
///
/// # Safety
///
/// `file` must be valid, have a reference to `target` until its end, and belong to this module.
pub(in crate::abstractions) unsafe fn prepare<T: Unplug>(
    file: NonNull<bindings::file>,
    target: ArcBorrow<'_, T>,
) -> bool {
    let Some(callback) = callback(target) else {
        return false;
    };
    // SAFETY: The callback belongs to the current task, and is a `Callback`: only `callback`
    // creates it, with `unplug::<T>` in it.
    let held = unsafe { &mut (*callback.as_ptr()).file };
    if held.is_none() {
        // SAFETY: Valid by the requirement.
        unsafe { bindings::get_file(file.as_ptr()) };
        *held = Some(file);
    }
    true
}

/// Makes `T::unplug` execute `kick` at the end of the current task's batch, merged with earlier
/// kicks of the same queue. To be called once the requests are in flight. Task context; does not
/// sleep.
pub(crate) fn defer_kick<T: Unplug>(target: ArcBorrow<'_, T>, kick: DeferredKick) -> Deferral {
    let Some(callback) = callback(target) else {
        return Deferral::NoBatch;
    };
    let callback = callback.as_ptr();
    // SAFETY: The callback is on the list of the current task, so nobody else uses it until the
    // task sleeps or the batch ends, which is not before this returns. It is a `Callback`: only
    // `callback` creates it, with `unplug::<T>` in it, and it was allocated with `kzalloc`.
    unsafe {
        if (*callback).file.is_none() {
            // The task has slept since `prepare`, which has ended the batch so far, and this
            // callback is new. It must not stay: without a file nothing would keep the module until
            // it is called.
            ringbar_list_del(&raw mut (*callback).inner.list);
            bindings::kfree(callback.cast());
            return Deferral::NoBatch;
        }
        if !(*callback).deferred {
            (*callback).deferred = true;
            (*callback).kick.write(kick);
            return Deferral::Deferred;
        }
        let before = (*callback).kick.assume_init();
        match before.merge(kick) {
            Some(both) => {
                (*callback).kick.write(both);
                Deferral::Deferred
            }
            None => {
                (*callback).kick.write(kick);
                Deferral::Replaced(before)
            }
        }
    }
}

/// # Safety
///
/// `callback` must be a [`Callback`] for a `T`, off its list.
unsafe extern "C" fn unplug<T: Unplug>(callback: *mut bindings::blk_plug_cb, scheduled: bool) {
    // SAFETY: By the requirement. The kick is initialised where it is deferred.
    let (data, file, kick) = unsafe {
        let data = (*callback).data;
        let callback = callback.cast::<Callback>();
        let deferred = (*callback).deferred;
        let kick = deferred.then(|| (*callback).kick.assume_init());
        (data, (*callback).file, kick)
    };
    // SAFETY: We have to free the callback; it was allocated with `kzalloc`.
    unsafe { bindings::kfree(callback.cast()) };
    let Some(file) = file else {
        return;
    };
    if let Some(kick) = kick {
        // SAFETY: By the requirement of `prepare`, the file has a reference to the data, and the
        // callback one to the file.
        let data = unsafe { ArcBorrow::from_raw(data.cast_const().cast()) };
        T::unplug(data, kick, scheduled);
    }
    // SAFETY: The callback owned the reference.
    unsafe { bindings::fput(file.as_ptr()) };
}

#[kernel::macros::kunit_tests(ringbar_plug)]
mod tests {
    use super::*;

    fn kick(queue: u16, poll_bytes: Option<usize>) -> DeferredKick {
        DeferredKick { queue, poll_bytes }
    }

    #[test]
    fn kicks_of_one_queue_become_one() {
        assert_eq!(
            kick(2, Some(3)).merge(kick(2, Some(4))),
            Some(kick(2, Some(7)))
        );
        assert_eq!(kick(2, Some(3)).merge(kick(2, None)), Some(kick(2, None)));
        assert_eq!(kick(2, None).merge(kick(2, Some(4))), Some(kick(2, None)));
        assert_eq!(
            kick(2, Some(usize::MAX)).merge(kick(2, Some(1))),
            Some(kick(2, Some(usize::MAX)))
        );
    }

    #[test]
    fn kicks_of_two_queues_stay_two() {
        assert_eq!(kick(2, Some(3)).merge(kick(3, Some(4))), None);
    }
}
