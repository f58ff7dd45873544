// SPDX-License-Identifier: GPL-2.0

//! One buffer of a program, for any number of requests.
//!
//! ```text
//!  Pinned --map--> Buffer --release: the device was stopped--> Released --drop--> (unpinned)
//! ```

use crate::{
    abstractions::dma::{
        range::DmaRange,
        segments::{
            pin_long_term,
            CleanedPages,
            Extracted,
            LockedPages,
            Mapped,
            Ownership,
            Room,
            SegmentLimits, //
        }, //
    },
    simple::queue::ENTRIES,
    virtio::{
        reset::Quiesced,
        ring::{
            descriptor,
            descriptor_flag,
            DESCRIPTOR_WORDS, //
        }, //
    }, //
};
use kernel::{
    device::Bound,
    dma::Coherent,
    io::{
        io_read,
        io_write,
        IoBase,
        SysMem, //
    },
    page::PAGE_SIZE,
    pci,
    prelude::*,
    uaccess::UserPtr, //
};

/// The page of a buffer in 64-bit words: the indirect descriptor table, and the metadata.
type Page = [u64; PAGE_WORDS];
const PAGE_WORDS: usize = PAGE_SIZE / 8;

/// The page without metadata, of which there are up to [`MAX_METADATA`] bytes.
const TABLE_WORDS: usize = PAGE_WORDS - MAX_METADATA / 8;

/// Greatest number of bytes of metadata.
pub(crate) const MAX_METADATA: usize = 64;

/// Greatest number of segments of a buffer, so that the table fits into the page and the chain is no
/// longer than the queue. One more descriptor is that of the metadata.
const MAX_SEGMENTS: usize = {
    let room = TABLE_WORDS / DESCRIPTOR_WORDS;
    let entries = ENTRIES as usize;
    (if room < entries { room } else { entries }) - 1
};

/// Greatest number of bytes that always fit into a buffer, wherever it begins.
pub(crate) const MAX_BYTES: usize = (MAX_SEGMENTS - 1) * PAGE_SIZE;

/// A buffer that no device knows yet.
pub(crate) struct Pinned<O: Ownership> {
    pages: Extracted<'static, O>,
    locked: LockedPages,
}

/// Pins `length` bytes of the current task's memory, up to [`MAX_BYTES`], as of [`pin_long_term`].
/// Sleeps for any time: the caller must hold nothing that others need, and no access to the hardware.
pub(crate) fn pin(
    address: u64,
    length: usize,
    max_segment_bytes: usize,
) -> Result<Pinned<impl Ownership>> {
    let count = (length / PAGE_SIZE).saturating_add(2).min(MAX_SEGMENTS);
    let limits = SegmentLimits::new(MAX_BYTES, count, max_segment_bytes);
    let start = UserPtr::from_addr(usize::try_from(address).map_err(|_| EFAULT)?);
    let (pages, locked) = pin_long_term(start, length, limits)?;
    Ok(Pinned { pages, locked })
}

/// A buffer that is mapped for a device. It must not be dropped, but released.
pub(crate) struct Buffer {
    index: usize,
    bytes: usize,
    /// Number of buffers that were posted before.
    pub(super) posted: u64,
    /// Whether the CPU has the pages: no device had them since it got their contents.
    is_synced: bool,
    pages: Mapped,
    room: Room,
    locked: LockedPages,
    page: Coherent<Page>,
    /// Number of descriptors in the page.
    descriptors: u16,
}

/// A buffer that no device has any more. Dropping it unpins its pages, which sleeps for any time.
pub(crate) struct Released {
    _cleaned: Option<CleanedPages>,
    _locked: LockedPages,
}

impl Buffer {
    /// Maps a buffer for `device`; `index` is its number, and `M` the number of bytes of metadata.
    /// May sleep.
    ///
    /// `EAGAIN` if there is no room for DMA at the moment.
    pub(crate) fn new<const M: usize>(
        device: &pci::Device<Bound>,
        index: usize,
        pinned: Pinned<impl Ownership>,
    ) -> Result<KBox<Self>> {
        const { assert!(M > 0 && M % 8 == 0 && M <= MAX_METADATA) };
        let Pinned { pages, locked } = pinned;
        // Before the pages are mapped: from then on nothing may fail.
        let memory = KBox::<Self>::new_uninit(GFP_KERNEL)?;
        let page = Coherent::zeroed(device.as_ref(), GFP_KERNEL)?;
        let mut room = Room::new()?;
        let bytes = pages.bytes();
        let pages = pages.map(device, &mut room).map_err(|(error, _)| error)?;
        let mut this = memory.write(Self {
            index,
            bytes,
            posted: 0,
            is_synced: true,
            pages,
            room,
            locked,
            page,
            descriptors: 0,
        });
        this.describe::<M>();
        Ok(this)
    }

    /// Writes the descriptor table.
    fn describe<const M: usize>(&mut self) {
        let page = &self.page;
        let mut next = 0;
        let mut put = |range, flags| {
            let at = usize::from(next) * DESCRIPTOR_WORDS;
            next += 1;
            let [first, second] = descriptor(range, flags, next);
            io_write!(memory(page), [panic: at], first);
            io_write!(memory(page), [panic: at + 1], second);
        };
        // A mapping has no more ranges than segments, which `MAX_SEGMENTS` bounds.
        self.pages
            .ranges()
            .for_each(|range| put(range, descriptor_flag::NEXT));
        let at = TABLE_WORDS * 8;
        put(DmaRange::of_coherent(page, at..at + M, true), 0);
        self.descriptors = next;
    }

    /// Its number among the buffers of the program.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Number of bytes of the buffer.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Prepares the buffer for the next request: the metadata are ones. Any context.
    pub(super) fn prepare<const M: usize>(&mut self, device: &pci::Device<Bound>) {
        for word in 0..M / 8 {
            io_write!(memory(&self.page), [panic: TABLE_WORDS + word], u64::MAX);
        }
        self.is_synced = false;
        self.pages.sync_for_device(device);
    }

    /// The descriptor table.
    pub(super) fn table(&self) -> (DmaRange<'_>, u16) {
        let words = usize::from(self.descriptors) * DESCRIPTOR_WORDS;
        let table = DmaRange::of_coherent(&self.page, 0..words * 8, false);
        (table, descriptor_flag::INDIRECT)
    }

    /// The metadata; `None` if the device has written none. Any context.
    pub(super) fn metadata<const M: usize>(&self) -> Option<[u8; M]> {
        let mut bytes = [0; M];
        for (word, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let value: u64 = io_read!(memory(&self.page), [panic: TABLE_WORDS + word]);
            chunk.copy_from_slice(&value.to_ne_bytes());
        }
        (bytes != [0xff; M]).then_some(bytes)
    }

    /// Lets the program see what the device has written. Bytes that the device has not written are
    /// undefined: a bounce buffer has others. Any context.
    pub(super) fn sync_for_cpu(&mut self, device: &pci::Device<Bound>) {
        self.pages.sync_for_cpu(device);
        self.is_synced = true;
    }

    /// Unmaps the buffer, after the device was stopped. Interrupts must be on: coherent
    /// memory is freed.
    pub(super) fn release(self, device: &pci::Device<Bound>, _quiesced: &Quiesced) -> Released {
        let Self {
            is_synced,
            pages,
            mut room,
            locked,
            ..
        } = self;
        // The program may have written to what it has.
        let pages = match is_synced {
            true => pages.unmap_synced(device),
            false => pages.unmap(device),
        };
        Released {
            _cleaned: pages.release(&mut room),
            _locked: locked,
        }
    }

    /// As [`Self::release`], for a buffer that was never posted. Interrupts must be on.
    pub(super) fn release_unused(self, device: &pci::Device<Bound>) {
        let Self {
            pages, mut room, ..
        } = self;
        pages.unmap_synced(device).release_clean(&mut room);
    }
}

/// The page as the CPU sees it.
fn memory(page: &Coherent<Page>) -> SysMem<'_, Page> {
    page.as_view().as_sys_mem()
}
