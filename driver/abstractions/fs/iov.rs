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
    current,
    dma::DataDirection,
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    types::Opaque,
    uaccess::UserPtr, //
};

/// The longest range of a call in bytes: whole pages of an `int`.
const MAX_RW_COUNT: usize = i32::MAX as usize & !(PAGE_SIZE - 1);

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

    /// Copies `bytes` to the memory of a read call, from the iterator's position on, and advances it.
    /// Sleeps. `EFAULT` if they do not fit, or the memory is not there: then a part of them may have
    /// been copied.
    #[allow(
        dead_code,
        reason = "for the drivers of other cards: see docs/own-card.md"
    )]
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result {
        // SAFETY: The iterator is valid, and `bytes` are readable. For the iterator of a write call
        // the function copies nothing, with a warning.
        let copied =
            unsafe { bindings::_copy_to_iter(bytes.as_ptr().cast(), bytes.len(), self.as_raw()) };
        (copied == bytes.len()).then_some(()).ok_or(EFAULT)
    }

    /// Whether its pages are pinned when they are extracted, which does not change.
    #[inline]
    pub(in crate::abstractions) fn will_pin(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ringbar_iov_iter_extract_will_pin(self.inner.as_ptr()) }
    }
}

/// One range of the memory of the current task, for calls that get an address and a length.
///
/// # Invariants
///
/// `inner` is an iterator of user memory (`ITER_UBUF`), which is within the task's address space.
#[allow(
    dead_code,
    reason = "for the drivers of other cards: see docs/own-card.md"
)]
pub(crate) struct UserRange {
    inner: Opaque<bindings::iov_iter>,
}

#[allow(dead_code, reason = "as above")]
impl UserRange {
    /// The `length` bytes from `start` on, in this direction. `EFAULT` if they cannot be memory of a
    /// program, or the current task has none, as a kernel thread; `EINVAL` if they are more than a
    /// call may have (`MAX_RW_COUNT` of `include/linux/fs.h`), or for another direction than to or
    /// from the device. Does not sleep; the memory is not accessed yet.
    pub(crate) fn new(start: UserPtr, length: usize, direction: DataDirection) -> Result<Self> {
        let source_or_destination = match direction {
            DataDirection::ToDevice => bindings::ITER_SOURCE,
            DataDirection::FromDevice => bindings::ITER_DEST,
            _ => return Err(EINVAL),
        };
        // The kernel would shorten a longer range.
        if length > MAX_RW_COUNT {
            return Err(EINVAL);
        }
        // Pinning pages needs an address space.
        if current!().mm().is_none() {
            return Err(EFAULT);
        }
        let inner = Opaque::uninit();
        // SAFETY: `inner` is valid for writing. The function only stores the address, after it has
        // checked the range.
        to_result(unsafe {
            bindings::import_ubuf(
                // CAST: 0 or 1.
                source_or_destination as c_int,
                start.as_mut_ptr(),
                length,
                inner.get(),
            )
        })?;
        // INVARIANT: Just initialised. It has no pointer to itself, so it may be moved.
        Ok(Self { inner })
    }

    /// The range as an iterator. The current task must be the one that made the range, or its memory
    /// is that of another program.
    pub(crate) fn iter(&mut self) -> IovIter<'_> {
        // SAFETY: Valid by the type invariant, and borrowed mutably as long as the iterator lives.
        unsafe { IovIter::from_raw(NonNull::new_unchecked(self.inner.get())) }
    }
}
