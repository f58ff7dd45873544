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
#[vtable]
pub(crate) trait FileOperations: plug::Unplug + Sized {
    /// The address space of the maps of all files of this device.
    fn address_space(&self) -> &AddressSpace;

    /// Size in bytes, for `lseek`. May sleep.
    fn size(&self) -> Result<i64>;

    /// Reads. May sleep unless [`Kiocb::nowait`].
    fn read<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call>;

    /// Writes. May sleep unless [`Kiocb::nowait`].
    fn write<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call>;

    /// Completes polled operations ([`Kiocb::is_polled`]) that the device has completed. Returns
    /// whether there were any. May sleep, but should not.
    fn poll_completions(this: ArcBorrow<'_, Self>) -> Result<bool>;

    /// The threads that wait until [`Self::readiness`] changes.
    fn pollers(&self) -> &Pollers;

    /// Whether a read or write would find a free slot. Does not sleep.
    fn readiness(&self) -> Readiness;

    /// Executes an `ioctl`. Sleeps. `ENOTTY` if the number is unknown.
    fn ioctl(&self, call: Ioctl) -> Result;

    /// Executes a command of io_uring. May sleep unless [`UringCommand::nonblocking`]. `ENOTTY` if
    /// the number is unknown.
    fn uring_command<'call>(
        this: ArcBorrow<'_, Self>,
        access: Access,
        command: UringCommand<'call>,
    ) -> UringReturn<'call>;

    /// Makes all written data durable. Sleeps.
    fn fsync(&self) -> Result;

    /// Maps the device. Sleeps.
    fn mmap<'a>(&self, map: NewMap<'a>) -> Result<Mapped<'a>>;

    /// Inserts a page at the first access to it, for a map that was [`NewMap::faulted`]. An error
    /// raises `SIGBUS`, except that `ENOMEM` reports the lack of memory (`VM_FAULT_OOM`). Sleeps.
    fn fault(&self, fault: PageFault<'_>) -> Result<Installed>;

    /// Reads the contents of a map of coherent memory, from byte `offset` of the file on, for a
    /// debugger. Returns the number of bytes. Sleeps.
    fn peek(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;
}
