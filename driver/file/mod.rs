// SPDX-License-Identifier: GPL-2.0

//! The operations of an open `/dev/ringbarN`.
//!
//! | module | contents |
//! |---|---|
//! | [`rw`] | `read` and `write` in all their forms |
//! | [`split`] | split transfers: calls of several requests |
//! | [`call`] | functions for both |
//! | [`mmap`] | `mmap` |
//! | [`ioctl`] | reads the arguments of `ioctl` from user space, and writes the results |
//! | [`command`] | commands, for `ioctl` and io_uring |
//! | [`block`] | the calls of programs for block devices |
//!
//! No function accesses user memory while it has a [`Guard`] of the hardware
//! ([`Device::hardware`]): a program may have to provide the page and never do so, and unbind waits
//! for each [`Guard`].
//!
//! [`Guard`]: crate::abstractions::pci::revocable::Guard

mod block;
mod call;
mod command;
mod ioctl;
pub(crate) mod mmap;
mod rw;
mod split;

use crate::{
    abstractions::{
        fs::{
            chardev::{
                Access,
                FileOperations,
                Ioctl, //
            },
            iov::IovIter,
            kiocb::{
                IoReturn,
                Kiocb, //
            },
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
    },
    device::Device,
    layout::Opcode, //
};
use kernel::{
    prelude::*,
    sync::ArcBorrow, //
};

#[vtable]
impl FileOperations for Device {
    fn address_space(&self) -> &AddressSpace {
        self.maps()
    }

    fn size(&self) -> Result<i64> {
        // After unbind the device has no size.
        self.hardware()?;
        Ok(self.capacity())
    }

    fn read<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call> {
        rw::transfer(this, Opcode::Read, kiocb, iter)
    }

    fn write<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call> {
        rw::transfer(this, Opcode::Write, kiocb, iter)
    }

    fn poll_completions(this: ArcBorrow<'_, Self>) -> Result<bool> {
        this.reap_polled()
    }

    fn pollers(&self) -> &Pollers {
        self.pollers()
    }

    fn readiness(&self) -> Readiness {
        self.readiness()
    }

    fn ioctl(&self, call: Ioctl) -> Result {
        ioctl::ioctl(self, &call)
    }

    fn uring_command<'call>(
        this: ArcBorrow<'_, Self>,
        access: Access,
        command: UringCommand<'call>,
    ) -> UringReturn<'call> {
        command::uring(this, access, command)
    }

    fn fsync(&self) -> Result {
        self.hardware()?.flush()
    }

    fn mmap<'a>(&self, map: NewMap<'a>) -> Result<Mapped<'a>> {
        mmap::map(self, map)
    }

    fn fault(&self, fault: PageFault<'_>) -> Result<Installed> {
        mmap::fault(self, fault)
    }

    fn peek(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        mmap::peek(self, offset, buffer)
    }
}
