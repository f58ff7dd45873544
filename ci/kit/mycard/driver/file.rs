// SPDX-License-Identifier: GPL-2.0

//! The calls of `/dev/mycardN`; see [`uapi`].

use crate::{
    abstractions::{
        fs::{
            chardev::{
                FileOperations,
                Ioctl, //
            },
            plug::Unplug, //
        },
        mm::address_space::AddressSpace, //
    },
    protocol::{
        Code,
        Config,
        Header,
        Opcode,
        Status, //
    },
    simple::{
        pages,
        Device, //
    },
    uapi::{
        self,
        Info,
        Run, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    uaccess::UserSlice, //
};

/// A card, as its files see it.
pub(crate) struct Card {
    device: Arc<Device>,
    config: Config,
}

impl Card {
    /// The card with this configuration.
    pub(crate) fn new(device: Arc<Device>, config: Config) -> Self {
        Self { device, config }
    }

    /// The description of the card.
    fn info(&self) -> Result<Info> {
        // Only while the card is there.
        drop(self.device.hardware()?);
        Ok(Info {
            max_bytes: self.config.max_bytes,
        })
    }

    /// Executes a run, and returns its result. Sleeps.
    fn run(&self, run: &Run) -> Result<u64> {
        let opcode = Opcode::from_raw(run.opcode).ok_or(EINVAL)?;
        let has_destination = matches!(opcode, Opcode::Xor);
        if run.reserved != 0
            || !(1..=u64::from(self.config.max_bytes)).contains(&run.length)
            || !has_destination && (run.destination != 0 || run.key != 0)
        {
            return Err(EINVAL);
        }
        let length = usize::try_from(run.length)?;
        let header = Header {
            opcode,
            key: run.key,
            source: run.length,
            destination: if has_destination { run.length } else { 0 },
        };
        let destination = has_destination.then_some((run.destination, length));
        let pages = pages::pin(&self.device, Some((run.source, length)), destination)?;
        let (status, written) = pages.run(&self.device, &header.to_bytes())?;
        let status = Status::parse(&status).ok_or(EIO)?;
        match status.code {
            // A card that contradicts itself.
            Code::Ok if (written as u64) < header.destination => Err(EIO),
            Code::Ok => Ok(status.result),
            Code::Unsupported => Err(EOPNOTSUPP),
            Code::Invalid => Err(EINVAL),
            Code::Failed => Err(EIO),
        }
    }
}

/// Calls are not batched.
impl Unplug for Card {}

#[vtable]
impl FileOperations for Card {
    fn address_space(&self) -> &AddressSpace {
        self.device.address_space()
    }

    fn ioctl(&self, call: Ioctl) -> Result {
        match call.number {
            uapi::IOC_INFO => UserSlice::new(call.argument, Info::SIZE)
                .writer()
                .write_slice(&self.info()?.to_bytes()),
            uapi::IOC_RUN => {
                let mut bytes = [0; Run::SIZE];
                UserSlice::new(call.argument, Run::SIZE)
                    .reader()
                    .read_slice(&mut bytes)?;
                let result = self.run(&Run::from_bytes(&bytes))?;
                let at = call.argument.wrapping_byte_add(Run::RESULT_AT);
                UserSlice::new(at, 8).writer().write(&result)
            }
            _ => Err(ENOTTY),
        }
    }
}
