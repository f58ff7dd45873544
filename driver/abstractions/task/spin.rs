// SPDX-License-Identifier: GPL-2.0

//! Busy-polling for a short time instead of sleeping.
//!
//! C headers: [`include/linux/preempt.h`](srctree/include/linux/preempt.h),
//! [`include/linux/sched.h`](srctree/include/linux/sched.h)

use crate::abstractions::helpers::{
    ringbar_need_resched,
    ringbar_preempt_disable,
    ringbar_preempt_enable, //
};
use core::marker::PhantomData;
use kernel::time::{
    Delta,
    Instant,
    Monotonic, //
};

/// Keeps the current task on its CPU, without preemption. The task must not sleep meanwhile.
pub(crate) struct NoPreemption {
    /// Belongs to the task.
    _not_send: PhantomData<*mut ()>,
}

impl NoPreemption {
    /// Disables preemption from now on. Any context.
    #[inline]
    pub(crate) fn new() -> Self {
        // SAFETY: May be called in any context; balanced by `drop`.
        unsafe { ringbar_preempt_disable() };
        Self {
            _not_send: PhantomData,
        }
    }
}

impl Drop for NoPreemption {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Balances the call in `new`.
        unsafe { ringbar_preempt_enable() };
    }
}

/// Calls `condition` repeatedly, at least once, until it returns true; but stops after `limit`, and
/// as soon as the scheduler has another task for this CPU. Returns the last result of `condition`.
///
/// The task is not preempted from before this call until after it, so other threads that depend on
/// it wait no longer than for that time. `condition` must not sleep. Any context; interrupts stay
/// on.
pub(crate) fn poll(
    _guard: &NoPreemption,
    limit: Delta,
    mut condition: impl FnMut() -> bool,
) -> bool {
    let start = Instant::<Monotonic>::now();
    loop {
        if condition() {
            return true;
        }
        // Also true if the other task may wait for the next tick (lazy preemption,
        // `TIF_NEED_RESCHED_LAZY`), which `need_resched` alone does not report.
        // SAFETY: May be called in any context.
        if unsafe { ringbar_need_resched() } || start.elapsed() >= limit {
            return false;
        }
        core::hint::spin_loop();
    }
}
