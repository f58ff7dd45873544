// SPDX-License-Identifier: GPL-2.0

//! What a character device does.

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

/// What a file was opened for.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// An `ioctl` call.
pub(crate) struct Ioctl {
    /// What its file was opened for.
    pub(crate) access: Access,
    /// The number of the request.
    pub(crate) number: u32,
    /// The argument, where it is a pointer.
    pub(crate) argument: UserPtr,
    /// Whether the caller is a 32-bit program on a 64-bit kernel: its `long` has 4 bytes.
    pub(crate) compat: bool,
}

/// What a character device does. Files keep a reference to it, so it outlives
/// the [`CharDevice`](super::CharDevice); once the hardware is gone its answers are `ENODEV`.
#[vtable]
pub(crate) trait FileOperations: plug::Unplug + Sized {
    /// Where the maps of all files of this device belong.
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

    /// Completes what there is of polled operations ([`Kiocb::is_polled`]). Returns
    /// whether there was any. May sleep, but should not.
    fn poll_completions(this: ArcBorrow<'_, Self>) -> Result<bool>;

    /// Those who wait until [`Self::readiness`] changes.
    fn pollers(&self) -> &Pollers;

    /// Whether a read or write would go through. Does not sleep.
    fn readiness(&self) -> Readiness;

    /// Executes an `ioctl`. Sleeps. `ENOTTY` where there is none of its number.
    fn ioctl(&self, call: Ioctl) -> Result;

    /// Executes a command of io_uring. May sleep unless
    /// [`UringCommand::nonblocking`]. `ENOTTY` where there is none of its number.
    fn uring_command<'call>(
        this: ArcBorrow<'_, Self>,
        access: Access,
        command: UringCommand<'call>,
    ) -> UringReturn<'call>;

    /// Makes all that was written durable. Sleeps.
    fn fsync(&self) -> Result;

    /// Maps the device. Sleeps.
    fn mmap<'a>(&self, map: NewMap<'a>) -> Result<Mapped<'a>>;

    /// Puts a page where a map that was [`NewMap::faulted`] is first touched. An error
    /// raises `SIGBUS`, `ENOMEM` kills for lack of memory. Sleeps.
    fn fault(&self, fault: PageFault<'_>) -> Result<Installed>;

    /// Reads what a map of coherent memory shows, from byte `offset` of the file on,
    /// for a debugger. Returns how much. Sleeps.
    fn peek(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;
}
