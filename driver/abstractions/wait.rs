// SPDX-License-Identifier: GPL-2.0

//! Waiting for a completion with a way out.
//!
//! [`kernel::sync::Completion`] offers the uninterruptible wait only.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use kernel::{
    bindings,
    prelude::*,
    time::Jiffies,
    types::Opaque, //
};

/// One waiter, woken once per use.
#[pin_data]
pub(crate) struct Waiter {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A `struct completion` has a lock of its own and no owner thread.
unsafe impl Send for Waiter {}
// SAFETY: All functions used here may be called concurrently.
unsafe impl Sync for Waiter {}

impl Waiter {
    /// A waiter that nobody has woken.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writing a `struct completion`.
                unsafe { bindings::init_completion(slot) }
            }),
        })
    }

    /// Wakes the waiter, now or when it comes to wait. Any context.
    #[inline]
    pub(crate) fn complete(&self) {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::complete(self.inner.get()) };
    }

    /// Waits to be woken, whatever signals come. Sleeps.
    pub(crate) fn wait(&self) {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::wait_for_completion(self.inner.get()) };
    }

    /// Waits to be woken. Sleeps. `EINTR` when a fatal signal came first.
    pub(crate) fn wait_killable(&self) -> Result {
        // SAFETY: Initialised by `new`.
        match unsafe { bindings::wait_for_completion_killable(self.inner.get()) } {
            0 => Ok(()),
            _ => Err(EINTR),
        }
    }

    /// Waits to be woken, at most `timeout`. Sleeps. `ETIMEDOUT` when it was not.
    pub(crate) fn wait_timeout(&self, timeout: Jiffies) -> Result {
        // SAFETY: Initialised by `new`.
        match unsafe { bindings::wait_for_completion_timeout(self.inner.get(), timeout) } {
            0 => Err(ETIMEDOUT),
            _ => Ok(()),
        }
    }

    /// Takes back a wake-up that nobody waited for. Any context.
    pub(crate) fn rearm(&self) {
        // SAFETY: Initialised by `new`.
        unsafe { bindings::try_wait_for_completion(self.inner.get()) };
    }
}
