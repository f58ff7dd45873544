// SPDX-License-Identifier: GPL-2.0

//! The data of a read or write call, as the DMA path needs it.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::bindings;

/// An I/O vector iterator of any kind: user memory, or kernel pages such as
/// io_uring's registered buffers.
///
/// # Invariants
///
/// Points to a valid `struct iov_iter` that nobody else uses during `'a`.
pub(crate) struct IovIter<'a> {
    inner: NonNull<bindings::iov_iter>,
    _call: PhantomData<&'a mut bindings::iov_iter>,
}

impl IovIter<'_> {
    /// # Safety
    ///
    /// `inner` must be valid and used by nobody else during the lifetime.
    #[inline]
    pub(super) unsafe fn from_raw(inner: NonNull<bindings::iov_iter>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            inner,
            _call: PhantomData,
        }
    }

    #[inline]
    pub(super) fn as_raw(&mut self) -> *mut bindings::iov_iter {
        self.inner.as_ptr()
    }

    /// Bytes left.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        // SAFETY: Valid by the type invariant.
        unsafe {
            (*self.inner.as_ptr())
                .__bindgen_anon_1
                .__bindgen_anon_1
                .as_ref()
                .count
        }
    }

    /// Goes back over `bytes` that were taken before.
    #[inline]
    pub(crate) fn revert(&mut self, bytes: usize) {
        // SAFETY: Valid by the type invariant. The callers go back over no more than they took,
        // which is what makes the result a state that the iterator has had before.
        unsafe { bindings::iov_iter_revert(self.inner.as_ptr(), bytes) };
    }
}
