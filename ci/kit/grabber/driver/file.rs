// SPDX-License-Identifier: GPL-2.0

//! The calls of `/dev/grabberN`; see [`uapi`].

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
            plug::Unplug,
            poll::{
                Pollers,
                Readiness, //
            }, //
        },
        mm::address_space::AddressSpace,
        task::wait::Signals, //
    },
    posted::{
        buffer,
        slots::Slots,
        stream::{
            Stream,
            MAX_BUFFERS, //
        }, //
    },
    protocol::{
        Config,
        Metadata, //
    },
    simple::started::Device,
    uapi::{
        self,
        Buffers,
        Frame,
        Info, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full, //
        },
        Arc,
        ArcBorrow, //
    },
    uaccess::UserSlice, //
};

/// A card, from probe to unbind.
pub(crate) type CardStream = Stream<{ Metadata::SIZE }>;

/// A card, as its files see it.
pub(crate) struct Card {
    device: Arc<Device<CardStream>>,
    slots: Arc<Slots<{ Metadata::SIZE }>>,
    frame_bytes: u32,
    is_open: Atomic<bool>,
}

impl Card {
    /// The card with this configuration.
    pub(crate) fn new(device: Arc<Device<CardStream>>, config: Config) -> Result<Self> {
        let slots = device.hardware()?.slots().clone();
        Ok(Self {
            device,
            slots,
            frame_bytes: config.frame_bytes,
            is_open: Atomic::new(false),
        })
    }

    /// The description of the card.
    fn info(&self) -> Result<Info> {
        let hardware = self.device.hardware()?;
        let config = Config::parse(&hardware.config(hardware.device())?).ok_or(EIO)?;
        Ok(Info {
            frame_bytes: self.frame_bytes,
            dropped: config.dropped,
        })
    }

    /// Pins and maps the buffers of a program. Sleeps.
    fn register(&self, buffers: Buffers) -> Result {
        let bytes = buffers.bytes as usize;
        let count = buffers.count as usize;
        if buffers.bytes < self.frame_bytes
            || bytes > buffer::MAX_BYTES
            || !(1..=MAX_BUFFERS).contains(&count)
        {
            return Err(EINVAL);
        }
        let mut pinned = KVec::with_capacity(count, GFP_KERNEL)?;
        for number in 0..u64::from(buffers.count) {
            let offset = number * u64::from(buffers.bytes);
            let address = buffers.address.checked_add(offset).ok_or(EFAULT)?;
            let max = self.device.max_segment_bytes();
            pinned.push(buffer::pin(address, bytes, max)?, GFP_KERNEL)?;
        }
        let hardware = self.device.hardware()?;
        hardware.register(hardware.device(), pinned)
    }

    /// Takes the buffers away from the card, and unpins them. Sleeps.
    fn unregister(&self) -> Result {
        let released = {
            let hardware = self.device.hardware()?;
            hardware.unregister(hardware.device())?
        };
        // Without the hardware, because this sleeps for any time.
        drop(released);
        Ok(())
    }

    fn post(&self, number: u32) -> Result {
        let hardware = self.device.hardware()?;
        hardware.post(hardware.device(), number as usize)
    }

    /// The next frame; `None` if there is none yet.
    fn take(&self) -> Result<Option<Frame>> {
        let filled = {
            let hardware = self.device.hardware()?;
            hardware.take(hardware.device())?
        };
        let Some(filled) = filled else {
            return Ok(None);
        };
        let metadata = Metadata::parse(&filled.metadata);
        Ok(Some(Frame {
            // CAST: At most `MAX_BUFFERS`, and at most `MAX_BYTES`.
            buffer: filled.index as u32,
            bytes: filled.bytes as u32,
            sequence: metadata.sequence,
            dropped: metadata.dropped,
            checksum: metadata.checksum,
        }))
    }

    fn next(&self, kiocb: &Kiocb<'_>) -> Result<Frame> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            if kiocb.nowait() {
                return Err(EAGAIN);
            }
            // A frame may never come.
            self.slots.wait(Signals::Any)?;
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

    fn open(&self, _access: Access) -> Result {
        match self.is_open.xchg(true, Full) {
            false => Ok(()),
            true => Err(EBUSY),
        }
    }

    fn release(&self) {
        // After an unbind nothing is pinned. If the card does not stop, the buffers stay pinned until it
        // does.
        let _ = self.unregister();
        self.is_open.xchg(false, Full);
    }

    fn read<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call> {
        if iter.len() < Frame::SIZE {
            return kiocb.done(Err(EINVAL));
        }
        let result = this.next(&kiocb).and_then(|frame| {
            iter.write(&frame.to_bytes())?;
            Ok(Frame::SIZE)
        });
        kiocb.done(result)
    }

    fn pollers(&self) -> &Pollers {
        self.slots.pollers()
    }

    fn readiness(&self) -> Readiness {
        self.slots.readiness()
    }

    fn ioctl(&self, call: Ioctl) -> Result {
        match call.number {
            uapi::IOC_INFO => UserSlice::new(call.argument, Info::SIZE)
                .writer()
                .write_slice(&self.info()?.to_bytes()),
            uapi::IOC_REGISTER => {
                let mut bytes = [0; Buffers::SIZE];
                UserSlice::new(call.argument, Buffers::SIZE)
                    .reader()
                    .read_slice(&mut bytes)?;
                self.register(Buffers::from_bytes(&bytes))
            }
            uapi::IOC_UNREGISTER => self.unregister(),
            uapi::IOC_POST => self.post(UserSlice::new(call.argument, 4).reader().read()?),
            _ => Err(ENOTTY),
        }
    }
}
