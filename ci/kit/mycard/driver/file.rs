// SPDX-License-Identifier: GPL-2.0

//! The calls of `/dev/mycardN`; see [`uapi`].
//!
//! No function accesses user memory while it has a [`Guard`] of the hardware: a program may have to
//! provide the page and never do so, and unbind waits for each [`Guard`].

use crate::{
    abstractions::{
        dma::segments::{
            AnyPageSource,
            Extracted,
            Ownership,
            SegmentLimits, //
        },
        fs::{
            chardev::{
                FileOperations,
                Ioctl, //
            },
            iov::UserRange,
            plug::Unplug, //
        },
        mm::address_space::AddressSpace,
        pci::revocable::{
            Guard,
            SrcuRevocable, //
        }, //
    },
    hardware::{
        Ended,
        Hardware,
        Rooms,
        MAX_SEGMENTS, //
    },
    protocol::{
        Config,
        Header,
        Opcode, //
    },
    uapi::{
        self,
        Info,
        Run, //
    }, //
};
use kernel::{
    dma::DataDirection,
    prelude::*,
    sync::Arc,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// A card, as its files see it. It outlives the hardware, which is revoked at unbind.
pub(crate) struct Card {
    hardware: Arc<SrcuRevocable<Hardware>>,
    maps: Arc<AddressSpace>,
    config: Config,
    limits: SegmentLimits,
}

impl Card {
    /// The card with this hardware and configuration.
    pub(crate) fn new(
        hardware: Arc<SrcuRevocable<Hardware>>,
        maps: Arc<AddressSpace>,
        config: Config,
        max_segment_bytes: usize,
    ) -> Self {
        let limits =
            SegmentLimits::new(config.max_bytes as usize, MAX_SEGMENTS, max_segment_bytes);
        Self {
            hardware,
            maps,
            config,
            limits,
        }
    }

    /// The hardware; `ENODEV` once the driver is being unbound.
    pub(crate) fn hardware(&self) -> Result<Guard<'_, Hardware>> {
        self.hardware.try_access().ok_or(ENODEV)
    }

    /// Pins user memory for the card. Sleeps.
    fn pin(&self, range: &mut UserRange, length: usize) -> Result<Extracted<'static, impl Ownership>> {
        let mut iter = range.iter();
        let AnyPageSource::User(mut source) = AnyPageSource::new(&mut iter) else {
            return Err(EFAULT);
        };
        let pages = source.extract(None, length, self.limits)?;
        // A part of the range may not be memory of the program.
        if pages.bytes() == length {
            Ok(pages)
        } else {
            Err(EFAULT)
        }
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
        let range = |address: u64, direction| {
            UserRange::new(UserPtr::from_addr(usize::try_from(address)?), length, direction)
        };
        let source = self.pin(&mut range(run.source, DataDirection::ToDevice)?, length)?;
        let destination = match has_destination {
            true => Some(self.pin(
                &mut range(run.destination, DataDirection::FromDevice)?,
                length,
            )?),
            false => None,
        };
        let header = Header {
            opcode,
            key: run.key,
            source: run.length,
            destination: if has_destination { run.length } else { 0 },
        };
        let mut rooms = Rooms::new()?;
        let ended = {
            let hardware = self.hardware()?;
            hardware.run(hardware.device(), header, source, destination, &mut rooms)
        };
        // Without the hardware, because this sleeps for any time.
        let Ended { result, cleaned } = ended;
        drop(cleaned);
        result
    }
}

/// Calls are not batched.
impl Unplug for Card {}

#[vtable]
impl FileOperations for Card {
    fn address_space(&self) -> &AddressSpace {
        &self.maps
    }

    fn ioctl(&self, call: Ioctl) -> Result {
        match call.number {
            uapi::IOC_INFO => {
                // Only while the card is there.
                drop(self.hardware()?);
                let info = Info {
                    max_bytes: self.config.max_bytes,
                };
                UserSlice::new(call.argument, Info::SIZE)
                    .writer()
                    .write_slice(&info.to_bytes())
            }
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
