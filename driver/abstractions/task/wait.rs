// SPDX-License-Identifier: GPL-2.0

//! Waits that a signal or a timeout can end.
//!
//! [`kernel::sync::Completion`] only offers the uninterruptible wait, and [`kernel::sync::CondVar`]
//! no wait that only a fatal signal ends.
//!
//! C headers: [`include/linux/completion.h`](srctree/include/linux/completion.h),
//! [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::abstractions::helpers::ringbar_killed;
use core::ptr::null_mut;
use kernel::{
    bindings,
    current,
    prelude::*,
    task::{
        TASK_INTERRUPTIBLE,
        TASK_NORMAL, //
    },
    time::Jiffies,
    types::Opaque, //
};

/// The signals that end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signals {
    /// Any signal. The error is `ERESTARTSYS`, which only a system call may return, and only if
    /// nothing has been done yet.
    Any,
    /// Signals that kill the process. The error is `EINTR`, which user space never receives.
    Fatal,
}

impl Signals {
    fn state(self) -> c_int {
        match self {
            Self::Any => TASK_INTERRUPTIBLE,
            // CAST: A few bits.
            Self::Fatal => bindings::TASK_KILLABLE as c_int,
        }
    }

    /// An error if the current task has got such a signal. Task context; does not sleep.
    pub(crate) fn pending(self) -> Result {
        match self {
            Self::Any if current!().signal_pending() => Err(ERESTARTSYS),
            // SAFETY: May be called in any task.
            Self::Fatal if unsafe { ringbar_killed() } => Err(EINTR),
            _ => Ok(()),
        }
    }
}

/// Threads that wait for an event and are woken in the order in which they came, one at a time.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    inner: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue has a lock of its own and no owner thread.
unsafe impl Send for WaitQueue {}
// SAFETY: All functions used here may be called concurrently.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// A queue without threads.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writing; name and class of the lock are static.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"ringbar_wait_queue".as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                }
            }),
        })
    }

    /// Waits for a wake-up, or for the end of `timeout`. Sleeps. The task is in the queue before it
    /// calls `unlock`. `unlock` has to release the lock under which other threads wake the task,
    /// and must not sleep. A wake-up may be spurious.
    ///
    /// An error if the task has got one of these `signals`, even if it was woken as well.
    pub(crate) fn wait(
        &self,
        signals: Signals,
        timeout: Option<Jiffies>,
        unlock: impl FnOnce(),
    ) -> Result {
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // `MAX_SCHEDULE_TIMEOUT` means no timeout.
        let timeout = timeout.map_or(c_long::MAX, |timeout| {
            c_long::try_from(timeout).unwrap_or(c_long::MAX)
        });
        // SAFETY: The queue was initialised by `new`. The entry is initialised here, does not move,
        // and is off the queue before it is freed. The timeout is not negative.
        unsafe {
            bindings::init_wait(entry.get());
            bindings::prepare_to_wait_exclusive(self.inner.get(), entry.get(), signals.state());
            unlock();
            bindings::schedule_timeout(timeout);
            bindings::finish_wait(self.inner.get(), entry.get());
        }
        signals.pending()
    }

    /// Wakes the thread that has waited longest. Any context.
    #[inline]
    pub(crate) fn notify_one(&self) {
        self.notify(1);
    }

    /// Wakes all threads. Any context.
    pub(crate) fn notify_all(&self) {
        self.notify(0);
    }

    fn notify(&self, count: c_int) {
        // SAFETY: Initialised by `new`. All threads that wait are in one of these states.
        unsafe { bindings::__wake_up(self.inner.get(), TASK_NORMAL, count, null_mut()) };
    }
}

/// One waiter, woken once per use.
#[pin_data]
pub(crate) struct KernelCompletion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A `struct completion` has a lock of its own and no owner thread.
unsafe impl Send for KernelCompletion {}
// SAFETY: All functions used here may be called concurrently.
unsafe impl Sync for KernelCompletion {}

impl KernelCompletion {
    /// A waiter that was not woken.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writing a `struct completion`.
                unsafe { bindings::init_completion(slot) }
            }),
        })
    }

    /// Wakes the waiter, now or as soon as it waits. Any context.
    #[inline]
    pub(crate) fn complete(&self) {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::complete(self.inner.get()) };
    }

    /// As [`Self::complete`], unless a wake-up is there already, which the waiter has yet to take. So
    /// wake-ups do not add up where they may be more frequent than waits. Any context.
    #[allow(
        dead_code,
        reason = "for the drivers of other cards: see docs/own-card.md"
    )]
    pub(crate) fn complete_once(&self) {
        // SAFETY: Initialised by `new`.
        if !unsafe { bindings::completion_done(self.inner.get()) } {
            self.complete();
        }
    }

    /// Waits for the wake-up, regardless of signals. Sleeps.
    pub(crate) fn wait(&self) {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::wait_for_completion(self.inner.get()) };
    }

    /// Waits for the wake-up. Sleeps. `EINTR` if a fatal signal came first.
    pub(crate) fn wait_killable(&self) -> Result {
        // SAFETY: Initialised by `new`.
        match unsafe { bindings::wait_for_completion_killable(self.inner.get()) } {
            0 => Ok(()),
            _ => Err(EINTR),
        }
    }

    /// Waits for the wake-up, at most `timeout`. Sleeps. `ETIMEDOUT` if there was none.
    pub(crate) fn wait_timeout(&self, timeout: Jiffies) -> Result {
        // SAFETY: Initialised by `new`.
        match unsafe { bindings::wait_for_completion_timeout(self.inner.get(), timeout) } {
            0 => Err(ETIMEDOUT),
            _ => Ok(()),
        }
    }

    /// Discards a wake-up for which no thread has waited. Any context.
    pub(crate) fn reinit(&self) {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::try_wait_for_completion(self.inner.get()) };
    }
}
