// SPDX-License-Identifier: GPL-2.0

//! `ioctl`: the part that accesses user memory. The functions that execute a call take values and
//! return values, so none of them holds a `Guard` of the hardware while a page of user space is
//! faulted in. See [`uapi`].

use super::{
    block::{
        self,
        Value, //
    },
    command, //
};
use crate::{
    abstractions::{
        fs::chardev::Ioctl,
        privilege::is_administrator, //
    },
    device::Device,
    uapi::{
        self,
        Command, //
    }, //
};
use kernel::{
    prelude::*,
    uaccess::UserSlice, //
};

impl Ioctl {
    /// Reads the first bytes of the argument.
    fn read<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        UserSlice::new(self.argument, N)
            .reader()
            .read_slice(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the first two 64-bit words of the argument.
    fn read_words(&self) -> Result<[u64; 2]> {
        let mut reader = UserSlice::new(self.argument, 16).reader();
        Ok([reader.read()?, reader.read()?])
    }

    /// Writes to the argument, `at` bytes from its start.
    fn write(&self, at: usize, bytes: &[u8]) -> Result {
        UserSlice::new(self.argument.wrapping_byte_add(at), bytes.len())
            .writer()
            .write_slice(bytes)
    }
}

/// Executes an `ioctl`. Sleeps. `ENOTTY` if the number is unknown.
pub(super) fn ioctl(device: &Device, call: &Ioctl) -> Result {
    match call.number {
        uapi::IOC_INFO => call.write(0, &command::info(device)?.to_bytes()),
        uapi::IOC_COMMAND => {
            let wire = Command::from_bytes(&call.read()?);
            let (result, outcome) = command::execute(device, call.access, &wire)?;
            call.write(Command::RESULT_AT, &result.to_ne_bytes())?;
            outcome
        }
        uapi::IOC_RESET if is_administrator() => device.reset(),
        uapi::IOC_RESET => Err(EPERM),
        number => match block::Request::from_number(number, call.compat).ok_or(ENOTTY)? {
            block::Request::Query(query) => match block::answer(device, query)? {
                Value::Short(value) => call.write(0, &value.to_ne_bytes()),
                Value::Int(value) => call.write(0, &value.to_ne_bytes()),
                Value::Long(value) if call.compat => {
                    let value = u32::try_from(value).map_err(|_| EFBIG)?;
                    call.write(0, &value.to_ne_bytes())
                }
                Value::Long(value) | Value::Wide(value) => call.write(0, &value.to_ne_bytes()),
            },
            block::Request::Flush => block::flush(device),
            block::Request::Change(opcode) => {
                let [start, length] = call.read_words()?;
                block::change(device, call.access, opcode, start, length)
            }
        },
    }
}
