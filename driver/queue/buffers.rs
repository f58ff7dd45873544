// SPDX-License-Identifier: GPL-2.0

//! What a request and the device share: a coherent page with the indirect descriptor
//! table, the request header and the status, and the caller's pages with their mapping.
//!
//! Nothing here knows of queues, or of who waits for the request.

use crate::{
    abstractions::dma::{
        range::DmaRange,
        segments::{
            CleanedPages,
            Extracted,
            Mapped,
            Ownership,
            Room,
            SegmentLimits, //
        }, //
    },
    layout::{
        Opcode,
        RequestHeader,
        RequestStatus,
        StatusCode, //
    },
    virtio::ring::{
        descriptor,
        descriptor_flag, //
        DESCRIPTOR_WORDS,
    }, //
};
use core::ops::Range;
use kernel::{
    device::Bound,
    dma::Coherent,
    io::{
        io_read,
        io_write, //
        IoBase,
        SysMem,
    },
    page::PAGE_SIZE,
    pci,
    prelude::*, //
};

/// The page of a request in 64-bit words: the indirect descriptor table, the request
/// header, the status.
type Page = [u64; PAGE_WORDS];
const PAGE_WORDS: usize = PAGE_SIZE / 8;
const STATUS_WORDS: usize = RequestStatus::SIZE / 8;
const HEADER_WORDS: usize = RequestHeader::SIZE / 8;
const STATUS_AT: usize = PAGE_WORDS - STATUS_WORDS;
const HEADER_AT: usize = STATUS_AT - HEADER_WORDS;
const TABLE_ENTRIES: usize = HEADER_AT / DESCRIPTOR_WORDS;

/// Most data segments of one request, so that they take one page. Below the
/// queue size of 256, which a chain must not exceed (2.7.5.3.1).
pub(crate) const MAX_SEGMENTS: usize = TABLE_ENTRIES - 2;

/// What the requests of a device can be.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// What the data of one may be.
    pub(crate) data: SegmentLimits,
    /// How many of them a queue can hold.
    pub(crate) requests: usize,
}

impl Limits {
    /// For requests of up to `bytes` in `segments` of `segment_bytes` each, on queues of
    /// `queue_size` entries.
    pub(crate) fn new(
        bytes: usize,
        segments: usize,
        segment_bytes: usize,
        queue_size: u16,
    ) -> Self {
        // A chain must not be longer than the queue (2.7.5.3.1).
        let room = usize::from(queue_size).saturating_sub(2);
        let count = segments.min(room).min(MAX_SEGMENTS);
        Self {
            data: SegmentLimits::new(bytes, count, segment_bytes),
            requests: usize::from(queue_size),
        }
    }
}

/// How far a transfer went.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// Bytes transferred, from the start.
    pub(crate) bytes: usize,
    /// What ended it early.
    pub(crate) error: Option<Error>,
}

impl Outcome {
    /// What a system call returns: an error counts only if nothing was done.
    pub(crate) fn into_result(self) -> Result<usize> {
        match self.error {
            Some(error) if self.bytes == 0 => Err(error),
            _ => Ok(self.bytes),
        }
    }
}

/// The memory of one request.
pub(crate) struct RequestBuffers {
    page: Coherent<Page>,
    /// The caller's memory, which the device may use.
    data: Option<Mapped>,
    /// The list of segments, while `data` has none.
    room: Room,
    opcode: Opcode,
    length: usize,
    /// Greatest result that a command can have.
    most: u64,
    descriptors: u16,
    /// Bytes that the device says it has written, from the start on.
    written: u32,
    failure: Option<Error>,
}

impl RequestBuffers {
    /// Allocates the memory, for transfers if `with_data`. May sleep.
    pub(super) fn new(device: &pci::Device<Bound>, with_data: bool) -> Result<Self> {
        Ok(Self {
            page: Coherent::zeroed(device.as_ref(), GFP_KERNEL)?,
            data: None,
            room: if with_data {
                Room::new()?
            } else {
                Room::none()
            },
            opcode: Opcode::Flush,
            length: 0,
            most: 0,
            descriptors: 0,
            written: 0,
            failure: None,
        })
    }

    /// The indirect descriptor table.
    #[inline]
    pub(super) fn table(&self) -> DmaRange<'_> {
        let words = usize::from(self.descriptors) * DESCRIPTOR_WORDS;
        DmaRange::of_coherent(&self.page, bytes(0..words), false)
    }

    /// Makes it a request without data.
    pub(super) fn prepare_command(&mut self, header: RequestHeader) {
        self.most = most(&header);
        self.write_page(header);
    }

    /// Makes it a transfer of the pages, which are mapped for the device. Any
    /// context.
    ///
    /// Errors as of [`Extracted::map`]; then the pages come back.
    pub(super) fn prepare_transfer<'s, O: Ownership>(
        &mut self,
        device: &pci::Device<Bound>,
        opcode: Opcode,
        flags: u16,
        offset: u64,
        pages: Extracted<'s, O>,
    ) -> Result<(), (Error, Extracted<'s, O>)> {
        let length = pages.bytes();
        self.data = Some(pages.map(device, &mut self.room)?);
        self.length = length;
        self.write_page(RequestHeader {
            opcode,
            flags,
            offset,
            length: length as u64,
            argument: 0,
        });
        Ok(())
    }

    /// Writes the descriptor table, the header, and a status that no device writes.
    fn write_page(&mut self, header: RequestHeader) {
        self.opcode = header.opcode;
        let page = &self.page;
        let mut table = Table {
            page: memory(page),
            next: 0,
        };
        table.put(
            DmaRange::of_coherent(page, bytes(HEADER_AT..STATUS_AT), false),
            descriptor_flag::NEXT,
        );
        if let Some(data) = &self.data {
            // No more than there is room for in the table, as of `Limits::new`.
            for range in data.ranges() {
                table.put(range, descriptor_flag::NEXT);
            }
        }
        table.put(
            DmaRange::of_coherent(page, bytes(STATUS_AT..PAGE_WORDS), true),
            0,
        );
        self.descriptors = table.next;

        for (i, word) in words(&header.to_bytes()).enumerate() {
            io_write!(memory(page), [panic: HEADER_AT + i], word);
        }
        for (i, word) in words(&RequestStatus::UNWRITTEN).enumerate() {
            io_write!(memory(page), [panic: STATUS_AT + i], word);
        }
    }

    /// What the request asks for.
    pub(super) fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// Bytes of data.
    #[inline]
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Number of data segments that the device gets.
    #[inline]
    pub(super) fn segments(&self) -> usize {
        // Header and status have a descriptor each.
        usize::from(self.descriptors.saturating_sub(2))
    }

    /// Notes how many bytes the device says it has written.
    #[inline]
    pub(super) fn set_written(&mut self, written: u32) {
        self.written = written;
    }

    /// Leaves all that the request holds to a device that may use it for ever.
    pub(super) fn leak(self) {
        if let Some(mapped) = self.data {
            mapped.leak();
        }
        core::mem::forget(self.page);
    }

    /// Ends the request with `error` whatever the device has written: it was reset.
    pub(super) fn fail(&mut self, error: Error) {
        self.failure = Some(error);
    }

    /// The status that the device wrote, read once. `EIO` where it wrote none.
    fn status(&self) -> Result<RequestStatus> {
        let mut bytes = [0; RequestStatus::SIZE];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let word: u64 = io_read!(memory(&self.page), [panic: STATUS_AT + i]);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        RequestStatus::parse(&bytes).ok_or(EIO)
    }

    /// How a transfer ended. A status that contradicts the request counts as an
    /// I/O error.
    pub(super) fn transfer_outcome(&self) -> Outcome {
        let failed = |error| Outcome {
            bytes: 0,
            error: Some(error),
        };
        if let Some(error) = self.failure {
            return failed(error);
        }
        let status = match self.status() {
            Ok(status) => status,
            Err(error) => return failed(error),
        };
        let Ok(bytes) = usize::try_from(status.result) else {
            return failed(EIO);
        };
        // What a read has transferred, it has written. More cannot be asked: the length counts
        // what is contiguous from the start, and so not the status of a read that failed
        // (2.7.8.2).
        if matches!(self.opcode, Opcode::Read) && (self.written as usize) < bytes {
            return failed(EIO);
        }
        match errno(status.code) {
            None if bytes == self.length => Outcome { bytes, error: None },
            Some(error) if bytes <= self.length => Outcome {
                bytes,
                error: Some(error),
            },
            _ => failed(EIO),
        }
    }

    /// How a command ended: the value it returns. One that the command cannot have counts as
    /// an I/O error.
    pub(super) fn command_outcome(&self) -> Result<u64> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let status = self.status()?;
        match errno(status.code) {
            None if status.result <= self.most => Ok(status.result),
            None => Err(EIO),
            Some(error) => Err(error),
        }
    }

    /// Takes the mapping down and gives the pages back; returns them where they have to be
    /// made dirty before. Any context. The device must be done with the request.
    pub(super) fn release(&mut self, device: &pci::Device<Bound>) -> Option<CleanedPages> {
        let data = self.data.take();
        let cleaned = data.and_then(|data| data.unmap(device).release(&mut self.room));
        self.clear();
        cleaned
    }

    /// As [`Self::release`], for a request that the device never had: the pages are as they
    /// were. Any context.
    pub(super) fn give_up(&mut self, device: &pci::Device<Bound>) {
        if let Some(data) = self.data.take() {
            data.unmap(device).give_up(&mut self.room);
        }
        self.clear();
    }

    #[inline]
    fn clear(&mut self) {
        self.length = 0;
        self.descriptors = 0;
        self.written = 0;
        self.failure = None;
    }
}

/// The table of descriptors in the page, while it is written.
struct Table<'a> {
    page: SysMem<'a, Page>,
    next: u16,
}

impl Table<'_> {
    /// Appends a descriptor.
    #[inline]
    fn put(&mut self, range: DmaRange<'_>, flags: u16) {
        let at = usize::from(self.next) * DESCRIPTOR_WORDS;
        self.next += 1;
        let [first, second] = descriptor(range, flags, self.next);
        io_write!(self.page, [panic: at], first);
        io_write!(self.page, [panic: at + 1], second);
    }
}

/// The page as the CPU sees it: to find out the bus address of each word takes time.
#[inline]
fn memory(page: &Coherent<Page>) -> SysMem<'_, Page> {
    page.as_view().as_sys_mem()
}

/// Words as bytes.
const fn bytes(words: Range<usize>) -> Range<usize> {
    words.start * size_of::<u64>()..words.end * size_of::<u64>()
}

/// The bytes as words in memory order.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|chunk| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        u64::from_ne_bytes(word)
    })
}

/// The greatest result that a command can have.
fn most(header: &RequestHeader) -> u64 {
    match header.opcode {
        Opcode::Crc32c => u64::from(u32::MAX),
        // Bytes of device memory, whatever that is.
        Opcode::MapAperture => u64::MAX,
        // Bytes of the range.
        _ => header.length,
    }
}

/// The error that a status stands for.
fn errno(code: StatusCode) -> Option<Error> {
    match code {
        StatusCode::Ok => None,
        StatusCode::IoError => Some(EIO),
        StatusCode::Unsupported => Some(EOPNOTSUPP),
        StatusCode::Invalid => Some(EINVAL),
        StatusCode::OutOfRange | StatusCode::ApertureUnavailable => Some(ENXIO),
        StatusCode::NoSpace => Some(ENOSPC),
    }
}
