// SPDX-License-Identifier: GPL-2.0

//! The owner of the pages of a request while the device accesses them, and the rules that follow
//! for a thread that waits for the request.

use crate::abstractions::task::wait::KernelCompletion;
use core::convert::Infallible;
use kernel::prelude::*;

mod sealed {
    pub(crate) trait Sealed {}
}

/// The owner of the pages of a request.
pub(crate) trait Ownership: sealed::Sealed {
    /// The reason why a thread stopped waiting for a request that is still in flight.
    type Left: Into<Error>;

    /// Whether each page has a pin of ours.
    const PINNED: bool;

    /// Waits for the end of a request with such pages. Sleeps.
    ///
    /// An error permits a return to the caller before the request has completed.
    fn wait(waiter: &KernelCompletion) -> Result<(), Self::Left>;
}

/// The pages are pinned: they stay until the request releases them.
pub(crate) struct Owned;

/// The pages belong to the caller, which may use them otherwise once the call has returned or its
/// control block was completed.
pub(crate) struct Borrowed;

impl sealed::Sealed for Owned {}
impl sealed::Sealed for Borrowed {}

impl Ownership for Owned {
    type Left = Error;

    const PINNED: bool = true;

    /// Ends early, with `EINTR`, if the caller is killed.
    fn wait(waiter: &KernelCompletion) -> Result {
        waiter.wait_killable()
    }
}

impl Ownership for Borrowed {
    type Left = Infallible;

    const PINNED: bool = false;

    fn wait(waiter: &KernelCompletion) -> Result<(), Infallible> {
        waiter.wait();
        Ok(())
    }
}
