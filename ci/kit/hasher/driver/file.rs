// SPDX-License-Identifier: GPL-2.0

//! The calls of `/dev/hasherN`; see [`uapi`].

use crate::{
    abstractions::{
        fs::{
            chardev::{
                FileOperations,
                Ioctl, //
            },
            plug::Unplug, //
        },
        mm::address_space::AddressSpace,
        task::wait::Signals, //
    },
    protocol::{
        self,
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
        Sha256, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    uaccess::UserSlice, //
};

/// Greatest length of a message in bytes. A signal that kills waits for one request of it.
const MAX_BYTES: u64 = 64 << 20;

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
            max_bytes: MAX_BYTES,
        })
    }

    /// Computes the digest of a message. Sleeps. The message has several requests if it is long:
    /// each pins its part for as long as it takes.
    fn sha256(&self, call: &Sha256) -> Result<[u8; 32]> {
        if call.length > MAX_BYTES {
            return Err(EINVAL);
        }
        let mut state = protocol::INITIAL;
        let mut before = 0;
        loop {
            // A slow device may take its time for each of many requests.
            Signals::Fatal.pending()?;
            let left = call.length - before;
            let (opcode, source) = if left > self.config.max_bytes.into() {
                (Opcode::Update, self.config.max_bytes.into())
            } else {
                (Opcode::Final, left)
            };
            let header = Header {
                opcode,
                source,
                before,
                state,
            };
            let address = call.address.checked_add(before).ok_or(EFAULT)?;
            state = self.run(&header, address)?;
            if opcode == Opcode::Final {
                return Ok(protocol::digest(&state));
            }
            before += source;
        }
    }

    /// Executes a request whose source is at this address, and returns the state after it.
    fn run(&self, header: &Header, address: u64) -> Result<protocol::State> {
        let length = usize::try_from(header.source)?;
        let source = (length > 0).then_some((address, length));
        let pages = pages::pin(&self.device, source, None)?;
        let (status, _) = pages.run(&self.device, &header.to_bytes())?;
        let status = Status::parse(&status).ok_or(EIO)?;
        match status.code {
            Code::Ok => Ok(status.state),
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
            uapi::IOC_SHA256 => {
                let mut bytes = [0; Sha256::SIZE];
                UserSlice::new(call.argument, Sha256::SIZE)
                    .reader()
                    .read_slice(&mut bytes)?;
                let digest = self.sha256(&Sha256::from_bytes(&bytes))?;
                let at = call.argument.wrapping_byte_add(Sha256::DIGEST_AT);
                UserSlice::new(at, digest.len())
                    .writer()
                    .write_slice(&digest)
            }
            _ => Err(ENOTTY),
        }
    }
}
