// SPDX-License-Identifier: GPL-2.0

//! The data of a read or write call, as the DMA path needs it.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use crate::abstractions::helpers::ringbar_iov_iter_extract_will_pin;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    dma::DataDirection, //
};

/// An I/O vector iterator of any kind: user memory, or kernel pages such as io_uring's registered
/// buffers.
///
/// # Invariants
///
/// Points to a valid `struct iov_iter` that nobody else uses during `'a`.
pub(crate) struct IovIter<'a> {
    inner: NonNull<bindings::iov_iter>,
    _call: PhantomData<&'a mut bindings::iov_iter>,
}

impl<'a> IovIter<'a> {
    /// # Safety
    ///
    /// `inner` must be valid and used by nobody else during the lifetime.
    #[inline]
    pub(in crate::abstractions) unsafe fn from_raw(inner: NonNull<bindings::iov_iter>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            inner,
            _call: PhantomData,
        }
    }

    #[inline]
    pub(in crate::abstractions) fn as_raw(&mut self) -> *mut bindings::iov_iter {
        self.inner.as_ptr()
    }

    /// Number of bytes left.
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

    /// The direction of the transfer (`iov_iter_rw`).
    #[inline]
    pub(in crate::abstractions) fn direction(&self) -> DataDirection {
        // SAFETY: Valid by the type invariant.
        let is_source = unsafe { (*self.inner.as_ptr()).data_source };
        const { assert!(bindings::ITER_DEST == 0 && bindings::ITER_SOURCE == 1) };
        if is_source {
            DataDirection::ToDevice
        } else {
            DataDirection::FromDevice
        }
    }

    /// Whether its pages are pinned when they are extracted, which does not change.
    #[inline]
    pub(in crate::abstractions) fn will_pin(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ringbar_iov_iter_extract_will_pin(self.inner.as_ptr()) }
    }
}
