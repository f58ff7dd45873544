// SPDX-License-Identifier: GPL-2.0

//! The operations of a character device.

use crate::abstractions::{
    fs::{
        iov::IovIter,
        kiocb::{
            IoReturn,
            Kiocb, //
        },
        plug,
        poll::{
            Pollers,
            Readiness, //
        }, //
    },
    io_uring::command::{
        UringCommand, //
        UringReturn,
    },
    mm::{
        address_space::AddressSpace,
        vma::{
            Installed,
            Mapped,
            NewMap,
            PageFault, //
        }, //
    }, //
};
use kernel::{
    build_error,
    error::VTABLE_DEFAULT_ERROR,
    prelude::*,
    sync::ArcBorrow,
    uaccess::UserPtr, //
};

/// The access for which a file was opened.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// An `ioctl` call.
pub(crate) struct Ioctl {
    /// The access for which its file was opened.
    pub(crate) access: Access,
    /// The number of the request.
    pub(crate) number: u32,
    /// The argument, if it is a pointer.
    pub(crate) argument: UserPtr,
    /// Whether the caller is a 32-bit program on a 64-bit kernel: its `long` has 4 bytes.
    pub(crate) compat: bool,
}

/// The operations of a character device. Files have a reference to it, so it outlives the
/// [`CharDevice`](super::CharDevice); once the hardware is revoked, the operations return `ENODEV`.
///
/// A device implements the operations that it has; a call of any other one fails as it does for
/// every file without this operation. [`Self::pollers`] and [`Self::readiness`] belong together, and
/// so do [`Self::mmap`], [`Self::fault`] and [`Self::peek`], unless the device makes no maps of the
/// kind for which the latter two are called.
#[expect(unused_variables, reason = "the defaults are never called")]
#[vtable]
pub(crate) trait FileOperations: plug::Unplug + Sized {
    /// The address space of the maps of all files of this device.
    fn address_space(&self) -> &AddressSpace;

    /// A file is being opened. An error refuses it. Sleeps.
    fn open(&self, access: Access) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A file that [`Self::open`] admitted has been closed: nobody has it any more. Sleeps.
    fn release(&self) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Size in bytes, for `lseek`. May sleep.
    fn size(&self) -> Result<i64> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Reads. May sleep unless [`Kiocb::nowait`].
    fn read<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes. May sleep unless [`Kiocb::nowait`].
    fn write<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Completes polled operations ([`Kiocb::is_polled`]) that the device has completed. Returns
    /// whether there were any. May sleep, but should not.
    fn poll_completions(this: ArcBorrow<'_, Self>) -> Result<bool> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The threads that wait until [`Self::readiness`] changes.
    fn pollers(&self) -> &Pollers {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Whether a read or write would find a free slot. Does not sleep.
    fn readiness(&self) -> Readiness {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Executes an `ioctl`. Sleeps. `ENOTTY` if the number is unknown.
    fn ioctl(&self, call: Ioctl) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Executes a command of io_uring. May sleep unless [`UringCommand::nonblocking`]. `ENOTTY` if
    /// the number is unknown.
    fn uring_command<'call>(
        this: ArcBorrow<'_, Self>,
        access: Access,
        command: UringCommand<'call>,
    ) -> UringReturn<'call> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Makes all written data durable. Sleeps.
    fn fsync(&self) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Maps the device. Sleeps.
    fn mmap<'a>(&self, map: NewMap<'a>) -> Result<Mapped<'a>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Inserts a page at the first access to it, for a map that was [`NewMap::faulted`]. An error
    /// raises `SIGBUS`, except that `ENOMEM` reports the lack of memory (`VM_FAULT_OOM`). Sleeps.
    fn fault(&self, fault: PageFault<'_>) -> Result<Installed> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Reads the contents of a map of coherent memory, from byte `offset` of the file on, for a
    /// debugger. Returns the number of bytes. Sleeps.
    fn peek(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}
