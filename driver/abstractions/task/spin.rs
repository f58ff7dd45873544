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

/// The result of one call of the condition of [`poll`].
pub(crate) enum PollResult {
    /// Nothing has happened.
    Idle,
    /// The call has done some work, and the condition does not hold yet.
    Working,
    /// The condition holds.
    Done,
}

/// Number of idle calls of the condition between two checks of the clock and of the scheduler,
/// which take several times the instructions of an idle call.
const IDLE_CALLS: u32 = 8;

/// Number of pause instructions after an idle call. One pause lasts 10 to 140 cycles, so that these
/// cost a fraction of what a request takes, and the CPU loads less from the memory to which the
/// device writes.
const IDLE_PAUSES: u32 = 4;

/// Calls `condition` repeatedly, at least once, until it holds; but stops after `limit`, and when
/// the scheduler has another task for this CPU. Returns whether the condition holds.
///
/// The task is not preempted from before this call until after it, so other threads that depend on
/// it wait no longer than for that time. `condition` must not sleep. Any context; interrupts stay
/// on.
pub(crate) fn poll(
    _guard: &NoPreemption,
    limit: Delta,
    mut condition: impl FnMut() -> PollResult,
) -> bool {
    let start = Instant::<Monotonic>::now();
    let mut idle = 0;
    loop {
        match condition() {
            PollResult::Done => return true,
            PollResult::Idle if idle < IDLE_CALLS => {
                idle += 1;
                for _ in 0..IDLE_PAUSES {
                    core::hint::spin_loop();
                }
            }
            PollResult::Idle | PollResult::Working => {
                idle = 0;
                // Also true if the other task may wait for the next tick (lazy preemption,
                // `TIF_NEED_RESCHED_LAZY`), which `need_resched` alone does not report.
                // SAFETY: May be called in any context.
                if unsafe { ringbar_need_resched() } || start.elapsed() >= limit {
                    return false;
                }
                core::hint::spin_loop();
            }
        }
    }
}
