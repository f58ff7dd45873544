// SPDX-License-Identifier: GPL-2.0

//! The memory that a request and the device share: a coherent page with the indirect descriptor
//! table, the request header and the status, and the caller's pages with their mapping.
//!
//! This module knows neither queues nor the waiter of a request.

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

/// The page of a request in 64-bit words: the indirect descriptor table, the request header, the
/// status.
type Page = [u64; PAGE_WORDS];
const PAGE_WORDS: usize = PAGE_SIZE / 8;
const STATUS_WORDS: usize = RequestStatus::SIZE / 8;
const HEADER_WORDS: usize = RequestHeader::SIZE / 8;
const STATUS_AT: usize = PAGE_WORDS - STATUS_WORDS;
const HEADER_AT: usize = STATUS_AT - HEADER_WORDS;
const TABLE_ENTRIES: usize = HEADER_AT / DESCRIPTOR_WORDS;

/// Greatest number of data segments of one request, so that its table fits into one page. Less than
/// the queue size of 256, which a chain must not exceed (2.7.5.3.1).
pub(crate) const MAX_SEGMENTS: usize = TABLE_ENTRIES - 2;

/// Limits of the requests of a device.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Limits of the data of one request.
    pub(crate) data: SegmentLimits,
    /// Greatest number of requests in a queue.
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

/// The end of a transfer.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// Bytes transferred, from the start.
    pub(crate) bytes: usize,
    /// The error that ended it early.
    pub(crate) error: Option<Error>,
}

impl Outcome {
    /// The result of the system call: an error only if no byte was transferred.
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
    /// The caller's memory, which the device may access.
    data: Option<Mapped>,
    /// The list of segments, while `data` has none.
    room: Room,
    opcode: Opcode,
    length: usize,
    /// Greatest result that the command can have.
    max_result: u64,
    descriptors: u16,
    /// Number of bytes that the device reports as written, from the start.
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
            max_result: 0,
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

    /// Prepares a request without data.
    pub(super) fn prepare_command(&mut self, header: RequestHeader) {
        self.max_result = max_result(&header);
        self.write_page(header);
    }

    /// Prepares a transfer of the pages, and maps them for the device. Any context.
    ///
    /// Errors as of [`Extracted::map`], which returns the pages with the error.
    #[inline(always)]
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
    #[inline(always)]
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
            // `Limits::new` bounds the segments, so the table has room for all of them.
            for range in data.ranges() {
                table.put(range, descriptor_flag::NEXT);
            }
        }
        table.put(
            DmaRange::of_coherent(page, bytes(STATUS_AT..PAGE_WORDS), true),
            0,
        );
        self.descriptors = table.next;

        let header: [u64; HEADER_WORDS] = words(&header.to_bytes());
        for (i, word) in header.into_iter().enumerate() {
            io_write!(memory(page), [panic: HEADER_AT + i], word);
        }
        let status: [u64; STATUS_WORDS] = words(&RequestStatus::UNWRITTEN);
        for (i, word) in status.into_iter().enumerate() {
            io_write!(memory(page), [panic: STATUS_AT + i], word);
        }
    }

    /// The opcode of the request.
    pub(super) fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// Bytes of data.
    #[inline]
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Number of data segments in the descriptor table.
    #[inline]
    pub(super) fn segments(&self) -> usize {
        // Header and status have a descriptor each.
        usize::from(self.descriptors.saturating_sub(2))
    }

    /// Records the number of bytes that the device reports as written.
    #[inline]
    pub(super) fn set_written(&mut self, written: u32) {
        self.written = written;
    }

    /// Leaks all memory of the request, because the device may use it for ever.
    pub(super) fn leak(self) {
        if let Some(mapped) = self.data {
            mapped.leak();
        }
        core::mem::forget(self.page);
    }

    /// Fails the request with `error`, whatever the device has written: the device was reset.
    pub(super) fn fail(&mut self, error: Error) {
        self.failure = Some(error);
    }

    /// The status that the device wrote, read once. `EIO` if the device wrote none.
    fn status(&self) -> Result<RequestStatus> {
        let mut bytes = [0; RequestStatus::SIZE];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let word: u64 = io_read!(memory(&self.page), [panic: STATUS_AT + i]);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        RequestStatus::parse(&bytes).ok_or(EIO)
    }

    /// The outcome of a transfer. A status that contradicts the request counts as an I/O error.
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
        // A read that has transferred bytes has written them. The check cannot be stricter: the
        // written length counts the contiguous bytes from the start, and so not the status of a
        // read that failed (2.7.8.2).
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

    /// The outcome of a command: its result. A result that the command cannot have counts as an I/O
    /// error.
    pub(super) fn command_outcome(&self) -> Result<u64> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let status = self.status()?;
        match errno(status.code) {
            None if status.result <= self.max_result => Ok(status.result),
            None => Err(EIO),
            Some(error) => Err(error),
        }
    }

    /// Unmaps and releases the pages; returns those that have to be made dirty before their
    /// release. Any context. The device must have completed the request.
    #[inline(always)]
    pub(super) fn release(&mut self, device: &pci::Device<Bound>) -> Option<CleanedPages> {
        let data = self.data.take();
        let cleaned = data.and_then(|data| data.unmap(device).release(&mut self.room));
        self.clear();
        cleaned
    }

    /// As [`Self::release`], for a request that the device never had, so that the pages have not
    /// changed. Any context.
    pub(super) fn release_clean(&mut self, device: &pci::Device<Bound>) {
        if let Some(data) = self.data.take() {
            data.unmap(device).release_clean(&mut self.room);
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

/// The descriptor table in the page, while the driver writes it.
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

/// The page as the CPU sees it. Computing the bus address of each word would take time.
#[inline]
fn memory(page: &Coherent<Page>) -> SysMem<'_, Page> {
    page.as_view().as_sys_mem()
}

/// Words as bytes.
const fn bytes(words: Range<usize>) -> Range<usize> {
    words.start * size_of::<u64>()..words.end * size_of::<u64>()
}

/// The bytes as words in memory order.
#[inline(always)]
fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u64; WORDS] {
    const { assert!(BYTES == 8 * WORDS) };
    core::array::from_fn(|i| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * i..8 * i + 8]);
        u64::from_ne_bytes(word)
    })
}

/// The greatest result that a command can have.
fn max_result(header: &RequestHeader) -> u64 {
    match header.opcode {
        Opcode::Crc32c => u64::from(u32::MAX),
        // Bytes of device memory; the request does not bound them.
        Opcode::MapAperture => u64::MAX,
        // Bytes of the range.
        _ => header.length,
    }
}

/// The error that corresponds to a status code.
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
