// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Provided buffers of io_uring (`IOSQE_BUFFER_SELECT`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{cqueue, opcode, squeue};

use super::memory::{PAGE, Region};
use super::result::check_result;
use super::uring::{self, Ring, UringOperation};

/// Buffer group id.
const GROUP: u16 = 3;

/// `IOU_PBUF_RING_INC`.
const INCREMENTAL: u16 = 2;

/// Method of providing buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provision {
    /// A ring in shared memory (`IORING_REGISTER_PBUF_RING`).
    Ring,
    /// The same ring, with buffers that several reads may fill (`IOU_PBUF_RING_INC`).
    Incremental,
    /// An operation (`IORING_OP_PROVIDE_BUFFERS`).
    Legacy,
}

/// Buffers of one length.
pub struct Provided {
    provision: Provision,
    memory: Region,
    length: usize,
    count: u16,
    ring: Region,
    tail: u16,
}

impl Provided {
    /// Provides `count` buffers, a power of two, at most 256.
    pub fn new(
        ring: &mut Ring,
        provision: Provision,
        count: u16,
        length: usize,
    ) -> io::Result<Self> {
        let mut provided = Self {
            provision,
            memory: Region::anonymous(usize::from(count) * length)?,
            length,
            count,
            ring: Region::anonymous(PAGE)?,
            tail: 0,
        };
        let flags = match provision {
            Provision::Ring => Some(0),
            Provision::Incremental => Some(INCREMENTAL),
            Provision::Legacy => None,
        };
        if let Some(flags) = flags {
            assert!(usize::from(count) * size_of::<BufRingEntry>() <= PAGE);
            let address = provided.ring.address() as u64;
            // SAFETY: the page has room for the entries; the kernel pins it.
            unsafe { ring.register_buffer_ring(address, count, GROUP, flags) }?;
        }
        provided.provide_again(ring)?;
        Ok(provided)
    }

    /// Provides all buffers again, after all of them were consumed.
    pub fn provide_again(&mut self, ring: &mut Ring) -> io::Result<()> {
        if self.provision == Provision::Legacy {
            let length = i32::try_from(self.length).map_err(io::Error::other)?;
            let first = self.memory.address() as *mut u8;
            let entry = opcode::ProvideBuffers::new(first, length, self.count, GROUP, 0).build();
            return ring.run_entry(entry).map(drop);
        }
        let entries = self.ring.address() as *mut BufRingEntry;
        for id in 0..self.count {
            let at = self.tail.wrapping_add(id) % self.count;
            // SAFETY: there are so many entries within the page.
            let entry = unsafe { entries.add(usize::from(at)) };
            // SAFETY: the page is zeroed, and so the entry valid; the kernel looks at it only once
            // the tail has passed it, and writes to none but those.
            let entry = unsafe { &mut *entry };
            entry.set_addr((self.memory.address() + usize::from(id) * self.length) as u64);
            entry.set_len(u32::try_from(self.length).map_err(io::Error::other)?);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(self.count);
        // SAFETY: the page begins with the ring.
        let tail = unsafe { BufRingEntry::tail(entries) }.cast_mut();
        // SAFETY: the page lives as long as `self`, and no reference to the entry is left.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// The memory of all buffers, in the order of their ids.
    pub fn memory(&self) -> &Region {
        &self.memory
    }

    /// Bytes of one buffer.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Number of buffers.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }
}

/// Completion of an operation with a provided buffer, or of one shot of a multishot
/// operation.
#[derive(Debug)]
pub struct Selected {
    /// Tag of the operation.
    pub tag: u64,
    /// Bytes or error.
    pub result: io::Result<usize>,
    /// Id of the buffer.
    pub buffer: Option<u16>,
    /// Whether the buffer has space left (`IORING_CQE_F_BUF_MORE`).
    pub buffer_more: bool,
    /// Whether more completions follow (`IORING_CQE_F_MORE`).
    pub more: bool,
}

impl<'a> UringOperation<'a> {
    /// A read of at most `length` bytes into a provided buffer that the kernel selects.
    pub fn read_provided(file: &File, _buffers: &'a Provided, length: usize, offset: u64) -> Self {
        let entry = opcode::Read::new(
            Fd(file.as_raw_fd()),
            std::ptr::null_mut(),
            uring::length(length),
        )
        .offset(offset)
        .buf_group(GROUP)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT);
        Self::without_buffers(entry)
    }

    /// Repeated reads of whole buffers at increasing offsets
    /// (`IORING_OP_READ_MULTISHOT`).
    pub fn read_multishot(file: &File, _buffers: &'a Provided, offset: u64) -> Self {
        let entry = opcode::ReadMulti::new(Fd(file.as_raw_fd()), 0, GROUP)
            .offset(offset)
            .build();
        Self::without_buffers(entry)
    }
}

impl Ring {
    /// Takes results together with the selected buffers.
    pub fn selected(&mut self, count: usize, timeout: Duration) -> io::Result<Vec<Selected>> {
        self.entries(count, timeout, Selected::from)
    }
}

impl From<cqueue::Entry> for Selected {
    fn from(entry: cqueue::Entry) -> Self {
        let flags = entry.flags();
        Self {
            tag: entry.user_data(),
            result: check_result(i64::from(entry.result())),
            buffer: cqueue::buffer_select(flags),
            buffer_more: cqueue::buffer_more(flags),
            more: cqueue::more(flags),
        }
    }
}
