// SPDX-License-Identifier: GPL-2.0

//! What an open `/dev/ringbarN` does.

mod command;
pub(crate) mod map;
mod transfer;

use crate::{
    abstractions::{
        address_space::AddressSpace,
        chardev::{
            Access,
            FileOperations, //
        },
        iov::IovIter,
        kiocb::{
            Answer,
            Kiocb, //
        },
        poll::{
            Pollers,
            Readiness, //
        },
        uring::{
            UringAnswer,
            UringCommand, //
        },
        vma::{
            Installed,
            Mapped,
            NewMap,
            PageFault, //
        }, //
    },
    device::Device,
    layout::Opcode, //
};
use kernel::{
    prelude::*,
    sync::ArcBorrow,
    uaccess::UserPtr, //
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

    fn read(this: ArcBorrow<'_, Self>, kiocb: Kiocb<'_>, iter: &mut IovIter<'_>) -> Answer {
        transfer::transfer(this, Opcode::Read, kiocb, iter)
    }

    fn write(this: ArcBorrow<'_, Self>, kiocb: Kiocb<'_>, iter: &mut IovIter<'_>) -> Answer {
        transfer::transfer(this, Opcode::Write, kiocb, iter)
    }

    fn poll_completions(this: ArcBorrow<'_, Self>) -> Result<bool> {
        Self::poll(this)
    }

    fn pollers(&self) -> &Pollers {
        self.pollers()
    }

    fn readiness(&self) -> Readiness {
        self.readiness()
    }

    fn ioctl(&self, access: Access, number: u32, argument: UserPtr) -> Result {
        command::ioctl(self, access, number, argument)
    }

    fn uring_command(
        this: ArcBorrow<'_, Self>,
        access: Access,
        command: UringCommand<'_>,
    ) -> UringAnswer {
        command::uring(this, access, command)
    }

    fn fsync(&self) -> Result {
        let hardware = self.hardware()?;
        match hardware.flush(hardware.device()) {
            // io_uring would hand it to its caller as it is.
            Err(error) if error == ERESTARTSYS => Err(EINTR),
            result => result,
        }
    }

    fn mmap<'a>(&self, map: NewMap<'a>) -> Result<Mapped<'a>> {
        map::map(self, map)
    }

    fn fault(&self, fault: PageFault<'_>) -> Result<Installed> {
        map::fault(self, fault)
    }

    fn peek(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        map::peek(self, offset, buffer)
    }
}
