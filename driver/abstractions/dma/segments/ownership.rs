// SPDX-License-Identifier: GPL-2.0

//! Who keeps the pages of a request while the device uses them, and what that means for
//! who waits for the request.

use crate::abstractions::task::wait::KernelCompletion;
use core::convert::Infallible;
use kernel::prelude::*;

mod sealed {
    pub(crate) trait Sealed {}
}

/// Who keeps the pages of a request.
pub(crate) trait Ownership: sealed::Sealed {
    /// Why somebody left a request alone that the device still works on.
    type Left: Into<Error>;

    /// Whether each page bears a pin of ours.
    const PINNED: bool;

    /// Waits for the end of a request with such pages. Sleeps.
    ///
    /// An error is leave to return to the caller before the request has ended.
    fn wait(waiter: &KernelCompletion) -> Result<(), Self::Left>;
}

/// The pages are pinned: they stay until they are given back.
pub(crate) struct Owned;

/// The pages belong to the caller, and are his again once the call has returned or its
/// control block was completed.
pub(crate) struct Borrowed;

impl sealed::Sealed for Owned {}
impl sealed::Sealed for Borrowed {}

impl Ownership for Owned {
    type Left = Error;

    const PINNED: bool = true;

    /// Ends early, with `EINTR`, where the caller is killed.
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
