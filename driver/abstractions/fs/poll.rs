// SPDX-License-Identifier: GPL-2.0

//! The conditions for which `poll` and `epoll` wait.
//!
//! C header: [`include/linux/poll.h`](srctree/include/linux/poll.h)

use kernel::{
    bindings,
    new_poll_condvar,
    prelude::*,
    sync::poll::PollCondVar, //
};

/// Whether a call on a file would find a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The call would find one.
    Ready,
    /// The call would wait, or fail with `EAGAIN`.
    Busy,
    /// The call would fail: the device is out of service.
    Gone,
}

impl Readiness {
    /// The events of `poll`.
    pub(in crate::abstractions) fn events(self) -> bindings::__poll_t {
        let ready =
            bindings::POLLIN | bindings::POLLOUT | bindings::POLLRDNORM | bindings::POLLWRNORM;
        match self {
            Self::Ready => ready,
            Self::Busy => 0,
            // So that no thread continues to wait.
            Self::Gone => ready | bindings::POLLERR | bindings::POLLHUP,
        }
    }
}

/// The threads that wait in `poll` or `epoll`. Lives as long as any file on which they wait.
#[pin_data]
pub(crate) struct Pollers {
    #[pin]
    inner: PollCondVar,
}

impl Pollers {
    /// A list without threads.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_poll_condvar!("ringbar_pollers"),
        })
    }

    /// Wakes the threads, which check the readiness again. Any context.
    pub(crate) fn notify(&self) {
        self.inner.notify_all();
    }

    pub(in crate::abstractions) fn condvar(&self) -> &PollCondVar {
        &self.inner
    }
}
