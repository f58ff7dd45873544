// SPDX-License-Identifier: GPL-2.0

//! I/O control blocks, with the rules of completion in the types.
//!
//! A `read_iter` or `write_iter` callback is given a [`Kiocb`] and owes an
//! [`IoReturn`] with the same lifetime `'call`, which stands for this call and no
//! other (see [`super::brand`]):
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
//! IoReturn<'call>: queued, and a QueuedKiocb --complete--> the caller is told
//! ```
//!
//! Each arrow uses up where it comes from. So neither "queued" for a synchronous
//! caller (whose `ki_complete` is NULL), nor a second completion, nor a use after
//! completion, nor an answer of another call can be written. There is no way back
//! from [`QueuedKiocb`]: whoever may still fail keeps the [`AsyncKiocb`].
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

/// An I/O control block during the call that hands it to the driver.
///
/// # Invariants
///
/// Points to a valid `struct kiocb` that nobody has completed or queued, and that is
/// in no other `Kiocb`. There is one `Kiocb<'call>` for each `'call`.
pub(crate) struct Kiocb<'call> {
    inner: NonNull<bindings::kiocb>,
    within_call: bool,
    batched: bool,
    _call: Brand<'call>,
}

/// What a `read_iter` or `write_iter` callback returns.
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
    /// With `within_call` the operation has to end within the call whoever asks for it;
    /// `batched` says whether it may be one of a batch.
    ///
    /// # Safety
    ///
    /// `inner` must be valid during `'call`, not be completed or queued, and be given
    /// to no other `Kiocb`. `'call` must be given to no other `Kiocb`: it is the
    /// lifetime parameter of the callback that this one is handed to.
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

    /// The file that the operation is on.
    #[inline]
    fn file(&self) -> *mut bindings::file {
        self.get().ki_filp
    }

    /// Whether the operation has to end within this very call: the caller waits for
    /// the result (`is_sync_kiocb`), or has to get it at once.
    #[inline]
    pub(crate) fn is_sync(&self) -> bool {
        self.within_call || self.get().ki_complete.is_none()
    }

    /// Which signals may end a wait before anything was done: a system call is restarted
    /// then, or its caller knows of the signal. Who is told later can do neither.
    #[inline]
    pub(crate) fn signals(&self) -> Signals {
        if self.get().ki_complete.is_none() {
            Signals::Any
        } else {
            Signals::Fatal
        }
    }

    /// Whether the call must not wait for its turn (`RWF_NOWAIT`, `O_NONBLOCK`):
    /// answer `EAGAIN` instead.
    #[inline]
    pub(crate) fn nowait(&self) -> bool {
        // SAFETY: The operation holds a reference to its file. As of `READ_ONCE`: `fcntl` may
        // change the flags.
        let flags = unsafe { (&raw const (*self.file()).f_flags).read_volatile() };
        self.get().ki_flags & IOCB_NOWAIT != 0 || flags & bindings::O_NONBLOCK != 0
    }

    /// Whether a call that must not wait comes again, from where it may, after
    /// `EAGAIN`: then it is that or the whole. Others are better off with a part.
    #[inline]
    pub(crate) fn all_or_nothing(&self) -> bool {
        !self.is_sync() && self.get().ki_flags & IOCB_NOWAIT != 0
    }

    /// Whether the completion will be looked for by
    /// [`FileOperations::poll_completions`]. A synchronous caller only sleeps.
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

    /// Ends the operation within the call, with the bytes done or an error, and
    /// moves the file position on by the bytes done.
    #[inline]
    pub(crate) fn done(mut self, result: Result<usize>) -> IoReturn<'call> {
        IoReturn::new(match result {
            // CAST: At most `MAX_RW_COUNT` bytes, which is below `i32::MAX`.
            Ok(bytes) => {
                // SAFETY: Valid by the type invariant, and nobody else has it.
                unsafe { self.inner.as_mut() }.ki_pos += bytes as i64;
                bytes as isize
            }
            Err(error) => error.to_errno() as isize,
        })
    }

    /// The control block as one that can be completed later. `Err` with it where the
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

/// A [`Kiocb`] that may be completed later, but does not have to be yet.
///
/// # Invariants
///
/// `ki_complete` is set.
pub(crate) struct AsyncKiocb<'call>(Kiocb<'call>);

impl<'call> AsyncKiocb<'call> {
    /// Whether the operation may be one of a batch, as of [`defer_kick`], which has to be
    /// asked then.
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

    /// Makes the operation one that completes later, and the answer one that says so.
    #[inline]
    pub(crate) fn queue(self) -> (QueuedKiocb, IoReturn<'call>) {
        // INVARIANT: `ki_complete` is set, and `self` is used up. The only answer of the call says
        // that the control block is kept until it is completed.
        (
            QueuedKiocb(self.0.inner),
            IoReturn::new(EIOCBQUEUED.to_errno() as isize),
        )
    }
}

/// An asynchronous operation that will be completed later. Dropped without a
/// completion it is completed with `EIO`, so that no caller waits forever.
///
/// # Invariants
///
/// Points to a valid `struct kiocb` with `ki_complete` set, which was not
/// completed. The kernel keeps it, and its file, until it is.
pub(crate) struct QueuedKiocb(NonNull<bindings::kiocb>);

// SAFETY: A control block may be completed by any thread, and in interrupts.
unsafe impl Send for QueuedKiocb {}

impl QueuedKiocb {
    /// Completes the operation with the bytes done or an error. Any context but
    /// NMI, with no lock held that a submitter takes.
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
                // SAFETY: Valid, and nobody else touches the position before the completion.
                unsafe { (*iocb).ki_pos += bytes as i64 };
                bytes as c_long
            }
            Err(error) => error.to_errno() as c_long,
        };
        // SAFETY: Valid by the type invariant.
        if let Some(complete) = unsafe { (*iocb).ki_complete } {
            // SAFETY: Not completed before, by the type invariant; not touched afterwards.
            unsafe { complete(iocb, ret) };
        }
    }
}

impl Drop for QueuedKiocb {
    fn drop(&mut self) {
        self.finish(Err(EIO));
    }
}
