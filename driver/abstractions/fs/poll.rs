// SPDX-License-Identifier: GPL-2.0

//! What `poll` and `epoll` wait for.
//!
//! C header: [`include/linux/poll.h`](srctree/include/linux/poll.h)

use kernel::{
    bindings,
    new_poll_condvar,
    prelude::*,
    sync::poll::PollCondVar, //
};

/// Whether a call on a file would go through without waiting for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It would.
    Ready,
    /// It would wait, or fail with `EAGAIN`.
    Busy,
    /// It would fail: the device is out of service.
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
            // So that nobody goes on waiting.
            Self::Gone => ready | bindings::POLLERR | bindings::POLLHUP,
        }
    }
}

/// Those who wait in `poll` or `epoll`. Lives as long as any file that they
/// wait on.
#[pin_data]
pub(crate) struct Pollers {
    #[pin]
    inner: PollCondVar,
}

impl Pollers {
    /// Nobody yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_poll_condvar!("ringbar_pollers"),
        })
    }

    /// Has them look again. Any context.
    pub(crate) fn notify(&self) {
        self.inner.notify_all();
    }

    pub(in crate::abstractions) fn condvar(&self) -> &PollCondVar {
        &self.inner
    }
}
