// SPDX-License-Identifier: GPL-2.0

//! I/O control blocks, with the rules of completion in the types.
//!
//! A `read_iter` or `write_iter` callback gets a [`Kiocb`] and has to return an [`IoReturn`] with
//! the same lifetime `'call`, which stands for this call and no other (see [`super::brand`]):
//!
//! ```text
//! Kiocb<'call> --done-------------------------------> IoReturn<'call>: bytes or errno
//!    |                                                     ^
//!    into_async (not for a synchronous caller)            done
//!    v                                                     |
//! AsyncKiocb<'call> ----------------------------------------
//!    |
//!    queue: once nothing can fail any more
//!    v
//! IoReturn<'call>: queued, and a QueuedKiocb --complete--> the caller is notified
//! ```
//!
//! Each arrow consumes its source. So these errors do not compile: "queued" for a synchronous
//! caller (whose `ki_complete` is NULL), a second completion, a use after completion, and the
//! return value of another call. There is no way back from [`QueuedKiocb`]: while submission may
//! still fail, the submitter keeps the [`AsyncKiocb`].
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::abstractions::{
    brand::Brand,
    helpers::{
        ringbar_iocb_is_dsync, //
        IOCB_HIPRI,
        IOCB_NOWAIT,
    },
    task::wait::Signals, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// An I/O control block during the call that passes it to the driver.
///
/// # Invariants
///
/// Points to a valid `struct kiocb` that was neither completed nor queued, and that is in no other
/// `Kiocb`. There is one `Kiocb<'call>` for each `'call`.
pub(crate) struct Kiocb<'call> {
    inner: NonNull<bindings::kiocb>,
    within_call: bool,
    batched: bool,
    _call: Brand<'call>,
}

/// The return value of a `read_iter` or `write_iter` callback.
#[must_use = "the caller waits for an answer"]
pub(crate) struct IoReturn<'call> {
    value: isize,
    _call: Brand<'call>,
}

impl IoReturn<'_> {
    fn new(value: isize) -> Self {
        Self {
            value,
            _call: PhantomData,
        }
    }

    /// The value for C: bytes, or a negative errno.
    #[inline]
    pub(in crate::abstractions) fn into_raw(self) -> isize {
        self.value
    }
}

impl<'call> Kiocb<'call> {
    /// With `within_call` the operation has to end within the call, whichever caller it has;
    /// `batched` says whether it may be one of a batch.
    ///
    /// # Safety
    ///
    /// `inner` must be valid during `'call`, not be completed or queued, and be in no other
    /// `Kiocb`. `'call` must belong to no other `Kiocb`: it is the lifetime parameter of the
    /// callback that gets this value.
    #[inline]
    pub(in crate::abstractions) unsafe fn from_raw(
        inner: NonNull<bindings::kiocb>,
        within_call: bool,
        batched: bool,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            inner,
            within_call,
            batched,
            _call: PhantomData,
        }
    }

    #[inline]
    fn get(&self) -> &bindings::kiocb {
        // SAFETY: Valid by the type invariant, and written only through `&mut self` or `self`.
        unsafe { self.inner.as_ref() }
    }

    /// The file of the operation.
    #[inline]
    fn file(&self) -> *mut bindings::file {
        self.get().ki_filp
    }

    /// Whether the operation has to end within this very call: the caller waits for the result
    /// (`is_sync_kiocb`), or has to get it at once.
    #[inline]
    pub(crate) fn is_sync(&self) -> bool {
        self.within_call || self.get().ki_complete.is_none()
    }

    /// Signals that may end a wait before anything was done: a system call is then restarted, or
    /// its caller knows of the signal. A caller that is notified later can do neither. A wait without
    /// a limit has to end by [`Signals::Any`] nevertheless: only that lets io_uring cancel the
    /// operation, and the system sleep.
    #[inline]
    pub(crate) fn signals(&self) -> Signals {
        if self.get().ki_complete.is_none() {
            Signals::Any
        } else {
            Signals::Fatal
        }
    }

    /// Whether the call must not wait for a slot (`RWF_NOWAIT`, `O_NONBLOCK`), but return `EAGAIN`.
    #[inline]
    pub(crate) fn nowait(&self) -> bool {
        // SAFETY: The operation has a reference to its file. As of `READ_ONCE`: `fcntl` may change
        // the flags.
        let flags = unsafe { (&raw const (*self.file()).f_flags).read_volatile() };
        self.get().ki_flags & IOCB_NOWAIT != 0 || flags & bindings::O_NONBLOCK != 0
    }

    /// Whether the caller of a call that must not wait retries the whole call after `EAGAIN`, from
    /// a thread that may wait: then the call must not become a short transfer. For other callers a
    /// short transfer is better.
    #[inline]
    pub(crate) fn all_or_nothing(&self) -> bool {
        !self.is_sync() && self.get().ki_flags & IOCB_NOWAIT != 0
    }

    /// Whether the caller polls for the completion by [`FileOperations::poll_completions`]. A
    /// synchronous caller only sleeps.
    ///
    /// [`FileOperations::poll_completions`]: crate::abstractions::fs::chardev::FileOperations::poll_completions
    #[inline]
    pub(crate) fn is_polled(&self) -> bool {
        !self.is_sync() && self.get().ki_flags & IOCB_HIPRI != 0
    }

    /// Whether written data must be durable when the operation completes
    /// (`O_DSYNC`, `RWF_DSYNC`).
    #[inline]
    pub(crate) fn is_dsync(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ringbar_iocb_is_dsync(self.inner.as_ptr()) }
    }

    /// Position in the file, in bytes.
    #[inline]
    pub(crate) fn position(&self) -> i64 {
        self.get().ki_pos
    }

    /// Ends the operation within the call, with the number of bytes done or an error, and advances
    /// the file position by that number. `ERESTARTSYS` becomes `EINTR` for a caller that is notified
    /// later, as nobody restarts its call.
    #[inline]
    pub(crate) fn done(mut self, result: Result<usize>) -> IoReturn<'call> {
        IoReturn::new(match result {
            // CAST: At most `MAX_RW_COUNT` bytes, which is below `i32::MAX`.
            Ok(bytes) => {
                // SAFETY: Valid by the type invariant, and nobody else has it.
                unsafe { self.inner.as_mut() }.ki_pos += bytes as i64;
                bytes as isize
            }
            Err(error) if error == ERESTARTSYS && self.get().ki_complete.is_some() => {
                EINTR.to_errno() as isize
            }
            Err(error) => error.to_errno() as isize,
        })
    }

    /// Converts the control block into one that can be completed later. `Err` returns it if the
    /// operation has to end within the call.
    #[inline]
    pub(crate) fn into_async(self) -> Result<AsyncKiocb<'call>, Self> {
        if self.is_sync() {
            return Err(self);
        }
        // INVARIANT: Not synchronous, so `ki_complete` is set.
        Ok(AsyncKiocb(self))
    }
}

/// A [`Kiocb`] that may be completed later, but need not be yet.
///
/// # Invariants
///
/// `ki_complete` is set.
pub(crate) struct AsyncKiocb<'call>(Kiocb<'call>);

impl<'call> AsyncKiocb<'call> {
    /// Whether the operation may be one of a batch. [`defer_kick`] then has to be called, and says
    /// whether there is one.
    ///
    /// [`defer_kick`]: crate::abstractions::fs::plug::defer_kick
    #[inline]
    pub(crate) fn may_be_batched(&self) -> bool {
        self.0.batched
    }

    /// As [`Kiocb::done`].
    #[inline]
    pub(crate) fn done(self, result: Result<usize>) -> IoReturn<'call> {
        self.0.done(result)
    }

    /// Makes the operation one that completes later, and returns `EIOCBQUEUED` for its call.
    #[inline]
    pub(crate) fn queue(self) -> (QueuedKiocb, IoReturn<'call>) {
        // INVARIANT: `ki_complete` is set, and `self` is consumed. The only return value of the
        // call says that the control block is kept until it is completed.
        (
            QueuedKiocb(self.0.inner),
            IoReturn::new(EIOCBQUEUED.to_errno() as isize),
        )
    }
}

/// An asynchronous operation that will be completed later. Dropping it without a completion
/// completes it with `EIO`, so that no caller waits for ever.
///
/// # Invariants
///
/// Points to a valid `struct kiocb` with `ki_complete` set, which was not completed. The kernel
/// keeps it, and its file, until its completion.
pub(crate) struct QueuedKiocb(NonNull<bindings::kiocb>);

// SAFETY: Any thread, and an interrupt handler, may complete a control block.
unsafe impl Send for QueuedKiocb {}

impl QueuedKiocb {
    /// Completes the operation with the number of bytes done or an error. Any context but NMI, with
    /// no lock held that a submitter takes.
    #[inline]
    pub(crate) fn complete(self, result: Result<usize>) {
        let this = core::mem::ManuallyDrop::new(self);
        this.finish(result);
    }

    #[inline]
    fn finish(&self, result: Result<usize>) {
        let iocb = self.0.as_ptr();
        let ret = match result {
            // CAST: At most `MAX_RW_COUNT` bytes, which is below `i32::MAX`.
            Ok(bytes) => {
                // SAFETY: Valid, and nobody else accesses the position before the completion.
                unsafe { (*iocb).ki_pos += bytes as i64 };
                bytes as c_long
            }
            Err(error) => error.to_errno() as c_long,
        };
        // SAFETY: Valid by the type invariant.
        if let Some(complete) = unsafe { (*iocb).ki_complete } {
            // SAFETY: Not completed before, by the type invariant; not accessed afterwards.
            unsafe { complete(iocb, ret) };
        }
    }
}

impl Drop for QueuedKiocb {
    fn drop(&mut self) {
        self.finish(Err(EIO));
    }
}
