// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One message: its checks, the call of the back end, its reply.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_DMA_UNMAP_FLAG_ALL, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vm_memory::Permissions;

use super::connection::{End, Error};
use super::receive::Descriptors;
use super::refusal::Refusal;
use super::reply::{Body, Replies};
use super::version::{self, MAX_DATA_XFER_SIZE};
use super::wire::{
    ACCESS_BYTES, DEVICE_INFO_BYTES, DMA_MAP_BYTES, DMA_UNMAP_BYTES, Fields, Header,
    IRQ_INFO_BYTES, Message, REGION_INFO_BYTES, command,
};
use super::{Area, Backend, InterruptInfo, Mapping, Region, irqs};
use crate::dma::{DmaMap, DmaUnmap};

/// Length in bytes of a sparse mmap capability without its areas.
const SPARSE_MMAP_BYTES: usize = 16;
/// Length in bytes of an area of that capability.
const AREA_BYTES: usize = 16;

/// Reason for which a command has no reply yet, or for which there is none.
enum Failure {
    /// The command is answered with an error.
    Refused(Refusal),
    /// The connection is over.
    Ended(End),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        Self::Ended(end)
    }
}

/// What the server knows of one client.
pub(super) struct Session<'a, B> {
    backend: &'a mut B,
    replies: Arc<Replies>,
    /// Set by `VFIO_USER_VERSION`.
    client: Option<version::Client>,
    /// Buffer that all replies share.
    message: Message,
}

impl<'a, B: Backend> Session<'a, B> {
    pub(super) fn new(backend: &'a mut B, replies: Arc<Replies>) -> Self {
        Self {
            backend,
            replies,
            client: None,
            message: Message::new(),
        }
    }

    /// Processes one message.
    pub(super) fn process(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
    ) -> Result<(), End> {
        if header.is_reply() {
            tracing::debug!(
                command = header.command,
                "vfio-user: a reply to no command ignored"
            );
            return Ok(());
        }
        self.message.clear();
        match self.command(header, body, files) {
            Ok(()) => Ok(()),
            Err(Failure::Ended(end)) => Err(end),
            Err(Failure::Refused(refusal)) => {
                self.replies.refuse(header, refusal)?;
                match refusal {
                    Refusal::Version(major, minor) => {
                        Err(End::Failed(Error::Version(major, minor)))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    fn command(&mut self, header: &Header, body: &[u8], files: Descriptors) -> Result<(), Failure> {
        if !header.is_command() {
            return Err(Refusal::HeaderFlags(header.flags).into());
        }
        let client = match (header.command, self.client) {
            (command::VERSION, None) => return self.version(header, body, files),
            (command::VERSION, Some(_)) => return Err(Refusal::Negotiated.into()),
            (_, None) => return Err(Refusal::NotNegotiated.into()),
            (_, Some(client)) => client,
        };
        match header.command {
            command::DMA_MAP => self.dma_map(header, body, files),
            command::DMA_UNMAP => self.dma_unmap(header, body, files),
            command::DEVICE_GET_INFO => self.device_info(header, body, files),
            command::DEVICE_GET_REGION_INFO => self.region_info(header, body, files, client),
            command::DEVICE_GET_IRQ_INFO => self.irq_info(header, body, files),
            command::DEVICE_SET_IRQS => self.set_irqs(header, body, files),
            command::REGION_READ => self.region_read(header, body, files),
            command::REGION_WRITE => self.region_write(header, body, files),
            command::DEVICE_RESET => self.reset(header, body, files),
            other => Err(Refusal::Command(other).into()),
        }
    }

    fn version(&mut self, header: &Header, body: &[u8], files: Descriptors) -> Result<(), Failure> {
        files.at_most(0)?;
        self.client = Some(version::Client::parse(body)?);
        self.message
            .u16(version::MAJOR)
            .u16(version::MINOR)
            .bytes(&version::server_data());
        Ok(self.replies.reply(header, &mut self.message, None)?)
    }

    fn dma_map(&mut self, header: &Header, body: &[u8], files: Descriptors) -> Result<(), Failure> {
        check_length(body, DMA_MAP_BYTES)?;
        let file = files.at_most(1)?.pop();
        let mut fields = Fields(body);
        let (argsz, flags) = (fields.u32(), fields.u32());
        let (offset, address, size) = (fields.u64(), fields.u64(), fields.u64());
        if argsz as usize != DMA_MAP_BYTES {
            return Err(Refusal::ArgumentSize {
                expected: DMA_MAP_BYTES,
                got: argsz,
            }
            .into());
        }
        const READ_WRITE: u32 = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
        let access = match flags {
            VFIO_DMA_MAP_FLAG_READ => Permissions::Read,
            VFIO_DMA_MAP_FLAG_WRITE => Permissions::Write,
            READ_WRITE => Permissions::ReadWrite,
            _ => return Err(Refusal::Flags(flags).into()),
        };
        check_range(address, size)?;
        check_range(offset, size)?;
        if file.is_none() && offset != 0 {
            return Err(Refusal::Range {
                start: offset,
                size,
            }
            .into());
        }
        let reply = self.replies.later(header, Body::Empty);
        self.backend.dma_map(
            DmaMap {
                address,
                size,
                offset,
                access,
            },
            file,
            reply,
        );
        Ok(())
    }

    fn dma_unmap(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
    ) -> Result<(), Failure> {
        check_length(body, DMA_UNMAP_BYTES)?;
        files.at_most(0)?;
        let mut fields = Fields(body);
        check_argsz(fields.u32(), DMA_UNMAP_BYTES)?;
        let (flags, address, size) = (fields.u32(), fields.u64(), fields.u64());
        let unmap = match flags {
            0 => {
                check_range(address, size)?;
                DmaUnmap::Range { address, size }
            }
            VFIO_DMA_UNMAP_FLAG_ALL if (address, size) == (0, 0) => DmaUnmap::All,
            VFIO_DMA_UNMAP_FLAG_ALL => {
                return Err(Refusal::Range {
                    start: address,
                    size,
                }
                .into());
            }
            _ => return Err(Refusal::Flags(flags).into()),
        };
        let mut body: [u8; DMA_UNMAP_BYTES] = body.try_into().expect("the length was checked");
        body[..4].copy_from_slice(&(DMA_UNMAP_BYTES as u32).to_ne_bytes());
        let reply = self.replies.later(header, Body::DmaUnmap(body));
        self.backend.dma_unmap(unmap, reply);
        Ok(())
    }

    fn device_info(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
    ) -> Result<(), Failure> {
        check_length(body, DEVICE_INFO_BYTES)?;
        files.at_most(0)?;
        check_argsz(Fields(body).u32(), DEVICE_INFO_BYTES)?;
        let info = self.backend.device();
        self.message
            .u32(DEVICE_INFO_BYTES as u32)
            .u32(info.flags)
            .u32(info.regions)
            .u32(info.irqs);
        Ok(self.replies.reply(header, &mut self.message, None)?)
    }

    fn region_info(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
        client: version::Client,
    ) -> Result<(), Failure> {
        check_length(body, REGION_INFO_BYTES)?;
        files.at_most(0)?;
        let mut fields = Fields(body);
        let (argsz, _, index) = (fields.u32(), fields.u32(), fields.u32());
        check_argsz(argsz, REGION_INFO_BYTES)?;
        if index >= self.backend.device().regions {
            return Err(Refusal::Region(index).into());
        }
        let absent = Region {
            size: 0,
            flags: 0,
            mapping: None,
        };
        let region = self.backend.region(index).unwrap_or(absent);
        // A client that cannot receive a descriptor cannot map either.
        let mapping = region.mapping.filter(|_| client.max_msg_fds > 0);
        let file = write_region_info(&mut self.message, index, &region, mapping, argsz);
        Ok(self.replies.reply(header, &mut self.message, file)?)
    }

    fn irq_info(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
    ) -> Result<(), Failure> {
        check_length(body, IRQ_INFO_BYTES)?;
        files.at_most(0)?;
        let mut fields = Fields(body);
        let (argsz, _, index) = (fields.u32(), fields.u32(), fields.u32());
        check_argsz(argsz, IRQ_INFO_BYTES)?;
        if index >= self.backend.device().irqs {
            return Err(Refusal::Interrupt(index).into());
        }
        let absent = InterruptInfo { count: 0, flags: 0 };
        let info = self.backend.interrupt(index).unwrap_or(absent);
        self.message
            .u32(IRQ_INFO_BYTES as u32)
            .u32(info.flags)
            .u32(index)
            .u32(info.count);
        Ok(self.replies.reply(header, &mut self.message, None)?)
    }

    fn set_irqs(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
    ) -> Result<(), Failure> {
        let set = irqs::parse(self.backend, body, files)?;
        self.backend.set_interrupts(set).map_err(Refusal::Device)?;
        Ok(self.replies.reply(header, &mut self.message, None)?)
    }

    fn region_read(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
    ) -> Result<(), Failure> {
        check_length(body, ACCESS_BYTES)?;
        files.at_most(0)?;
        let access = Access::parse(body);
        access.check(self.backend, VFIO_REGION_INFO_FLAG_READ)?;
        access.write(&mut self.message);
        let data = self.message.room(access.count as usize);
        self.backend
            .read(access.region, access.offset, data)
            .map_err(Refusal::Device)?;
        Ok(self.replies.reply(header, &mut self.message, None)?)
    }

    fn region_write(
        &mut self,
        header: &Header,
        body: &[u8],
        files: Descriptors,
    ) -> Result<(), Failure> {
        let Some((fixed, data)) = body.split_at_checked(ACCESS_BYTES) else {
            return Err(Refusal::Length {
                expected: ACCESS_BYTES,
                got: body.len(),
            }
            .into());
        };
        files.at_most(0)?;
        let access = Access::parse(fixed);
        access.check(self.backend, VFIO_REGION_INFO_FLAG_WRITE)?;
        check_length(data, access.count as usize)?;
        self.backend
            .write(access.region, access.offset, data)
            .map_err(Refusal::Device)?;
        access.write(&mut self.message);
        Ok(self.replies.reply(header, &mut self.message, None)?)
    }

    fn reset(&mut self, header: &Header, body: &[u8], files: Descriptors) -> Result<(), Failure> {
        check_length(body, 0)?;
        files.at_most(0)?;
        if self.backend.device().flags & VFIO_DEVICE_FLAGS_RESET == 0 {
            return Err(Refusal::Reset.into());
        }
        let reply = self.replies.later(header, Body::Empty);
        self.backend.reset(reply);
        Ok(())
    }
}

/// The fixed part of `VFIO_USER_REGION_READ` and `_WRITE`.
#[derive(Clone, Copy)]
struct Access {
    offset: u64,
    region: u32,
    count: u32,
}

impl Access {
    fn parse(fixed: &[u8]) -> Self {
        let mut fields = Fields(fixed);
        Self {
            offset: fields.u64(),
            region: fields.u32(),
            count: fields.u32(),
        }
    }

    fn write(self, message: &mut Message) {
        message.u64(self.offset).u32(self.region).u32(self.count);
    }

    /// Checks that the region has all the bytes and `flag`.
    fn check(self, backend: &impl Backend, flag: u32) -> Result<(), Refusal> {
        let Self {
            offset,
            region: index,
            count,
        } = self;
        let region = (index < backend.device().regions)
            .then(|| backend.region(index))
            .flatten()
            .ok_or(Refusal::Region(index))?;
        if region.flags & flag == 0 {
            return Err(Refusal::RegionAccess(index));
        }
        if count == 0 || count > MAX_DATA_XFER_SIZE {
            return Err(Refusal::TransferSize(count));
        }
        let end = offset.checked_add(u64::from(count));
        if end.is_none_or(|end| end > region.size) {
            return Err(Refusal::RegionRange {
                region: index,
                offset,
                count,
            });
        }
        Ok(())
    }
}

/// Writes the body of the reply to `VFIO_USER_DEVICE_GET_REGION_INFO`, with as much as `argsz`
/// bytes, and returns the descriptor that goes with it.
///
/// A region with areas is described as mappable only where the areas fit: a client that sees a
/// larger `argsz` than its own asks again. (QEMU refuses a reply with the flag for capabilities
/// but without an offset of them.)
fn write_region_info<'a>(
    message: &mut Message,
    index: u32,
    region: &Region<'_>,
    mapping: Option<Mapping<'a>>,
    argsz: u32,
) -> Option<BorrowedFd<'a>> {
    let areas = mapping.map_or(&[][..], |mapping| mapping.areas);
    let capability = match areas.len() {
        0 => 0,
        count => SPARSE_MMAP_BYTES + count * AREA_BYTES,
    };
    let full = (REGION_INFO_BYTES + capability) as u32;
    let mapping = mapping.filter(|_| argsz >= full);
    let access = region.flags & (VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE);
    let (flags, cap_offset) = match mapping {
        None => (access, 0),
        Some(_) if areas.is_empty() => (access | VFIO_REGION_INFO_FLAG_MMAP, 0),
        Some(_) => (
            access | VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS,
            REGION_INFO_BYTES as u32,
        ),
    };
    let offset = mapping.map_or(0, |mapping| mapping.offset);
    message
        .u32(full)
        .u32(flags)
        .u32(index)
        .u32(cap_offset)
        .u64(region.size)
        .u64(offset);
    if cap_offset != 0 {
        write_areas(message, areas);
    }
    mapping.map(|mapping| mapping.file.as_fd())
}

/// Writes `struct vfio_region_info_cap_sparse_mmap`, the last capability.
fn write_areas(message: &mut Message, areas: &[Area]) {
    message
        .u16(VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16)
        .u16(1)
        .u32(0);
    message.u32(areas.len() as u32).u32(0);
    for area in areas {
        message.u64(area.offset).u64(area.size);
    }
}

/// Checks that `body` has exactly `expected` bytes.
fn check_length(body: &[u8], expected: usize) -> Result<(), Refusal> {
    if body.len() != expected {
        return Err(Refusal::Length {
            expected,
            got: body.len(),
        });
    }
    Ok(())
}

/// Checks that the client has room for the fixed part of the reply.
fn check_argsz(argsz: u32, expected: usize) -> Result<(), Refusal> {
    if (argsz as usize) < expected {
        return Err(Refusal::ArgumentSize {
            expected,
            got: argsz,
        });
    }
    Ok(())
}

/// Checks that a range is not empty and ends within 64 bits.
fn check_range(start: u64, size: u64) -> Result<(), Refusal> {
    match size.checked_sub(1).and_then(|last| start.checked_add(last)) {
        Some(_) => Ok(()),
        None => Err(Refusal::Range { start, size }),
    }
}
