// SPDX-License-Identifier: GPL-2.0

//! What an open `/dev/ringbarN` does.
//!
//! | module | what is in it |
//! |---|---|
//! | [`rw`] | `read` and `write` in all their forms |
//! | [`split`] | those that take several requests |
//! | [`call`] | what both need |
//! | [`mmap`] | `mmap` |
//! | [`ioctl`] | takes the arguments of `ioctl` from user space, puts the results there |
//! | [`command`] | what the device does besides, for `ioctl` and io_uring |
//! | [`block`] | what programs ask block devices |
//!
//! Nobody in the hardware (as of [`Device::hardware`]) touches user memory: its pages may
//! have to be fetched by a program that never does, and unbind waits for who is inside.

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
        // A device that has gone has no size.
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
