// SPDX-License-Identifier: GPL-2.0

//! Commands that io_uring passes through to a driver (`IORING_OP_URING_CMD`).
//!
//! As in [`crate::abstractions::fs::kiocb`], a callback gets a [`UringCommand`] and has to return a
//! [`UringReturn`] of the same call; the command is completed exactly once.
//!
//! C header: [`include/linux/io_uring/cmd.h`](srctree/include/linux/io_uring/cmd.h)

use crate::abstractions::{
    brand::Brand,
    helpers::{
        ringbar_uring_cmd_done,
        ringbar_uring_cmd_file,
        ringbar_uring_cmd_from_tw,
        ringbar_uring_cmd_in_task,
        ringbar_uring_cmd_op,
        ringbar_uring_cmd_payload,
        ringbar_uring_cmd_pdu, //
        IoTwReq,
        IoTwState,
        IO_URING_CMD_TASK_WORK_ISSUE_FLAGS,
        IO_URING_F_CQE32,
        IO_URING_F_NONBLOCK,
        IO_URING_F_SQE128,
        URING_PAYLOAD_BYTES,
        URING_PDU_BYTES,
    }, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// A command during the call that passes it to the driver.
///
/// # Invariants
///
/// Points to a valid `struct io_uring_cmd` that was neither completed nor queued, and that is in no
/// other `UringCommand`. There is one `UringCommand<'call>` for each `'call`.
pub(crate) struct UringCommand<'call> {
    inner: NonNull<bindings::io_uring_cmd>,
    issue_flags: c_uint,
    _call: Brand<'call>,
}

/// The return value of the callback.
#[must_use = "the caller waits for an answer"]
pub(crate) struct UringReturn<'call> {
    value: c_int,
    _call: Brand<'call>,
}

impl UringReturn<'_> {
    fn new(value: c_int) -> Self {
        Self {
            value,
            _call: PhantomData,
        }
    }

    /// The value for C.
    #[inline]
    pub(in crate::abstractions) fn into_raw(self) -> c_int {
        self.value
    }
}

impl<'call> UringCommand<'call> {
    /// # Safety
    ///
    /// `inner` must be the command that io_uring passed to the callback, with `issue_flags`, be
    /// valid during `'call`, and be in no other `UringCommand`. `'call` must not belong to another
    /// one either: it is the lifetime parameter of the callback that gets this value.
    pub(in crate::abstractions) unsafe fn from_raw(
        inner: NonNull<bindings::io_uring_cmd>,
        issue_flags: c_uint,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            inner,
            issue_flags,
            _call: PhantomData,
        }
    }

    /// The file of the command.
    pub(in crate::abstractions) fn file(&self) -> *mut bindings::file {
        // SAFETY: Valid by the type invariant.
        unsafe { ringbar_uring_cmd_file(self.inner.as_ptr()) }
    }

    /// The number in `cmd_op`.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: Valid by the type invariant.
        unsafe { ringbar_uring_cmd_op(self.inner.as_ptr()) }
    }

    /// The first bytes of the command, read once: user space may change them at any time. `None` if
    /// the submission entries have the short format.
    pub(crate) fn payload<const N: usize>(&self) -> Option<[u8; N]> {
        const { assert!(N <= URING_PAYLOAD_BYTES) };
        if self.issue_flags & IO_URING_F_SQE128 == 0 {
            return None;
        }
        // SAFETY: Valid by the type invariant; the entry has the long format, with at least this
        // number of bytes from there on. Each byte is read once, whatever user space writes
        // meanwhile.
        Some(unsafe {
            ringbar_uring_cmd_payload(self.inner.as_ptr())
                .cast::<[u8; N]>()
                .read_volatile()
        })
    }

    /// Whether the call must not block.
    pub(crate) fn nonblocking(&self) -> bool {
        self.issue_flags & IO_URING_F_NONBLOCK != 0
    }

    /// Makes io_uring repeat the call from a thread that may block. Only for a call that must not.
    pub(crate) fn retry_blocking(self) -> UringReturn<'call> {
        UringReturn::new(EAGAIN.to_errno())
    }

    /// Ends the command within the call. The value of a success goes into the completion entry, if
    /// the entries have the long format.
    pub(crate) fn done(self, result: Result<u64>) -> UringReturn<'call> {
        let (ret, value) = split(result);
        if ret == 0 && self.issue_flags & IO_URING_F_CQE32 != 0 {
            // SAFETY: Not completed before, by the type invariant; this consumes the command. The
            // flags are those of the call.
            unsafe {
                ringbar_uring_cmd_done(self.inner.as_ptr(), ret, value, self.issue_flags, true)
            };
            return UringReturn::new(EIOCBQUEUED.to_errno());
        }
        UringReturn::new(ret)
    }

    /// Makes the command one that completes later, and returns `EIOCBQUEUED` for its call. There is
    /// no way back: while submission may still fail, the submitter keeps the command.
    pub(crate) fn queue(self) -> (QueuedUringCommand, UringReturn<'call>) {
        // INVARIANT: `self` is consumed. The only return value of the call says that the command is
        // kept until it is completed.
        (
            QueuedUringCommand {
                inner: self.inner,
                long_entry: self.issue_flags & IO_URING_F_CQE32 != 0,
            },
            UringReturn::new(EIOCBQUEUED.to_errno()),
        )
    }
}

/// The data that a completion passes to the task that submitted the command; stored in the
/// command's own space for the driver.
#[repr(C)]
struct Outcome {
    ret: c_int,
    long_entry: bool,
    value: u64,
}

/// A command that will be completed later. Dropping it without a completion completes it with
/// `EIO`.
///
/// # Invariants
///
/// Points to a valid `struct io_uring_cmd` that was not completed. io_uring keeps it, and its file,
/// until its completion.
pub(crate) struct QueuedUringCommand {
    inner: NonNull<bindings::io_uring_cmd>,
    long_entry: bool,
}

// SAFETY: Any thread, and an interrupt handler, may complete a command.
unsafe impl Send for QueuedUringCommand {}

impl QueuedUringCommand {
    /// Completes the command. Any context but NMI.
    pub(crate) fn complete(self, result: Result<u64>) {
        let this = core::mem::ManuallyDrop::new(self);
        this.finish(result);
    }

    fn finish(&self, result: Result<u64>) {
        const { assert!(size_of::<Outcome>() <= URING_PDU_BYTES && align_of::<Outcome>() <= 8) };
        let (ret, value) = split(result);
        let outcome = Outcome {
            ret,
            long_entry: self.long_entry,
            value,
        };
        // SAFETY: The command is valid, and its space for the driver is ours; the space is large
        // and aligned enough, as was asserted. The command is not accessed after the hand-over.
        unsafe {
            ringbar_uring_cmd_pdu(self.inner.as_ptr())
                .cast::<Outcome>()
                .write(outcome);
            ringbar_uring_cmd_in_task(self.inner.as_ptr(), complete_in_task);
        }
    }
}

impl Drop for QueuedUringCommand {
    fn drop(&mut self) {
        self.finish(Err(EIO));
    }
}

/// # Safety
///
/// To be called by io_uring, for a command that `finish` has handed over.
unsafe extern "C" fn complete_in_task(request: IoTwReq, _state: IoTwState) {
    // SAFETY: The command is the one that was handed over, with the outcome in its space.
    unsafe {
        let command = ringbar_uring_cmd_from_tw(request);
        let outcome = ringbar_uring_cmd_pdu(command).cast::<Outcome>().read();
        ringbar_uring_cmd_done(
            command,
            outcome.ret,
            outcome.value,
            IO_URING_CMD_TASK_WORK_ISSUE_FLAGS,
            outcome.long_entry,
        );
    }
}

fn split(result: Result<u64>) -> (c_int, u64) {
    match result {
        Ok(value) => (0, value),
        Err(error) => (error.to_errno(), 0),
    }
}
