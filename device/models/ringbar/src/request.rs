// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Descriptor chain to request.
//!
//! How the bytes of a request are cut into descriptors means nothing
//! (VIRTIO 1.3, 2.7.4): the header is the first [`RequestHeader::SIZE`]
//! device-readable bytes, the status the last [`RequestStatus::SIZE`]
//! device-writable ones, the data what lies between.

use ringbar_spec::{
    DeviceConfig, HeaderError, Opcode, QueueFault, RequestHeader, RequestStatus, StatusCode,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

use crate::chain::{Buffer, Chain, ChainHead};

/// What a device accepts, but for its capacity, which may change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    config: DeviceConfig,
}

impl Limits {
    /// The limits that a device announces in its configuration space.
    pub const fn new(config: DeviceConfig) -> Self {
        Self { config }
    }

    /// Most buffers that a chain within the limits can have: the data segments,
    /// and a header and a status cut into single bytes.
    pub const fn max_buffers(&self) -> usize {
        self.config.max_segments() as usize + RequestHeader::SIZE + RequestStatus::SIZE
    }
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub addr: GuestAddress,
    /// Length in bytes, not 0.
    pub len: u32,
}

/// Which requests a queue takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// The control queue.
    Control,
    /// An I/O queue.
    Io,
}

/// Where the status of a request goes.
///
/// # Invariants
///
/// The segments were within guest memory when the chain was read, and have
/// [`RequestStatus::SIZE`] bytes in sum.
#[derive(Debug, Default)]
pub struct StatusSlot {
    segments: Vec<Segment>,
}

impl StatusSlot {
    /// Writes the status.
    ///
    /// # Errors
    ///
    /// [`QueueFault::Address`] where `mem` has no such memory any more.
    pub fn write<M: GuestMemory>(&self, mem: &M, status: RequestStatus) -> Result<(), QueueFault> {
        let bytes = status.to_bytes();
        let mut rest = &bytes[..];
        for segment in &self.segments {
            let (piece, after) = rest
                .split_at_checked(segment.len as usize)
                .ok_or(QueueFault::Address)?;
            mem.write_slice(piece, segment.addr)
                .map_err(|_| QueueFault::Address)?;
            rest = after;
        }
        Ok(())
    }
}

/// A validated request.
///
/// # Invariants
///
/// The opcode fits the queue's role and is executed by the device; offset plus
/// length is within the capacity, and so is the second range of a command that
/// has one; the segments lie in guest memory, and have `length` bytes in sum
/// where the opcode is read or write and none elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    header: RequestHeader,
    data: &'a [Segment],
}

impl Request<'_> {
    /// What the driver asks for.
    pub const fn header(&self) -> &RequestHeader {
        &self.header
    }

    /// The data segments.
    pub const fn data(&self) -> &[Segment] {
        self.data
    }
}

/// What a chain asks for and where the answer goes.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// Where the status goes.
    pub status: &'a StatusSlot,
    /// Number of device-writable bytes before the status.
    pub writable: u64,
    /// The request, or the code with which to refuse it.
    pub request: Result<Request<'a>, StatusCode>,
}

/// Turns chains into requests. Made to be used again for the next chain
/// without a new allocation.
#[derive(Debug)]
pub struct Parser {
    config: DeviceConfig,
    role: QueueRole,
    chain: Chain,
    data: Vec<Segment>,
    status: StatusSlot,
}

impl Parser {
    /// A parser for one queue.
    pub fn new(limits: Limits, role: QueueRole) -> Self {
        Self {
            config: limits.config,
            role,
            chain: Chain::with_limit(limits.max_buffers()),
            data: Vec::with_capacity(limits.max_buffers()),
            status: StatusSlot {
                segments: Vec::with_capacity(RequestStatus::SIZE),
            },
        }
    }

    /// Reads and validates the chain at `head`, for a device of `capacity` bytes.
    ///
    /// # Errors
    ///
    /// Chains that cannot be answered, see [`Chain::read`]; in addition
    /// [`QueueFault::NoStatus`] without [`RequestStatus::SIZE`] writable bytes
    /// and [`QueueFault::Address`] with some of these outside guest memory.
    pub fn parse<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: ChainHead,
        capacity: u64,
    ) -> Result<Parsed<'_>, QueueFault> {
        self.chain.read(mem, head)?;
        let writable = self.find_status(mem)?;
        let header = self.validate(mem, writable, capacity);
        Ok(Parsed {
            status: &self.status,
            writable,
            request: header.map(|header| Request {
                header,
                data: &self.data,
            }),
        })
    }

    /// Finds the status; returns the number of writable bytes before it.
    fn find_status<M: GuestMemory>(&mut self, mem: &M) -> Result<u64, QueueFault> {
        let writable = total(self.chain.buffers(), true);
        let before = writable
            .checked_sub(RequestStatus::SIZE as u64)
            .ok_or(QueueFault::NoStatus)?;
        let segments = &mut self.status.segments;
        segments.clear();
        segments.extend(cut(self.chain.buffers(), true, before, writable));
        // INVARIANT: the segments are the last SIZE writable bytes, checked here.
        if !segments.iter().all(|segment| in_memory(mem, segment, true)) {
            return Err(QueueFault::Address);
        }
        Ok(before)
    }

    fn validate<M: GuestMemory>(
        &mut self,
        mem: &M,
        data_writable: u64,
        capacity: u64,
    ) -> Result<RequestHeader, StatusCode> {
        let buffers = self.chain.buffers();
        // VIRTIO 1.3, 2.7.4.2: device-writable after device-readable.
        if !buffers.is_sorted_by_key(|buffer| buffer.writable) {
            return Err(StatusCode::Invalid);
        }
        let readable = total(buffers, false);
        let data_readable = readable
            .checked_sub(RequestHeader::SIZE as u64)
            .ok_or(StatusCode::Invalid)?;
        let header = read_header(mem, buffers)?;

        if header.opcode.is_control() != (self.role == QueueRole::Control)
            || !self.config.supports(header.opcode)
        {
            return Err(StatusCode::Unsupported);
        }

        let max_data = u64::from(self.config.max_request_bytes());
        let (writable, wrong_way, data, max_length) = match header.opcode {
            Opcode::Read => (true, data_readable, header.length, max_data),
            Opcode::Write => (false, data_writable, header.length, max_data),
            Opcode::Flush | Opcode::MapAperture => {
                if header.offset != 0 {
                    return Err(StatusCode::Invalid);
                }
                (true, data_readable, 0, 0)
            }
            Opcode::Discard
            | Opcode::WriteZeroes
            | Opcode::Copy
            | Opcode::Fill
            | Opcode::Compare
            | Opcode::Crc32c => (true, data_readable, 0, self.config.max_command_bytes()),
        };
        let (from, to) = if writable {
            (0, data_writable)
        } else {
            (RequestHeader::SIZE as u64, readable)
        };
        if wrong_way != 0 || to - from != data || header.length > max_length {
            return Err(StatusCode::Invalid);
        }

        self.data.clear();
        self.data.extend(cut(buffers, writable, from, to));
        if self.data.len() > usize::from(self.config.max_segments()) {
            return Err(StatusCode::Invalid);
        }
        // INVARIANT: everything below is checked before the request is made.
        let within = |start: u64| {
            start
                .checked_add(header.length)
                .is_some_and(|end| end <= capacity)
        };
        if !within(header.offset) || header.opcode.has_second_range() && !within(header.argument) {
            return Err(StatusCode::OutOfRange);
        }
        if !self
            .data
            .iter()
            .all(|segment| in_memory(mem, segment, writable))
        {
            return Err(StatusCode::Invalid);
        }
        Ok(header)
    }
}

/// Copies the header out of guest memory, once, and parses the copy.
fn read_header<M: GuestMemory>(mem: &M, buffers: &[Buffer]) -> Result<RequestHeader, StatusCode> {
    let mut bytes = [0; RequestHeader::SIZE];
    let mut rest = &mut bytes[..];
    for segment in cut(buffers, false, 0, RequestHeader::SIZE as u64) {
        let (piece, after) = rest
            .split_at_mut_checked(segment.len as usize)
            .ok_or(StatusCode::Invalid)?;
        if !in_memory(mem, &segment, false) {
            return Err(StatusCode::Invalid);
        }
        mem.read_slice(piece, segment.addr)
            .map_err(|_| StatusCode::Invalid)?;
        rest = after;
    }
    RequestHeader::parse(&bytes).map_err(|error| match error {
        HeaderError::Opcode(_) => StatusCode::Unsupported,
        HeaderError::Flags(_) | HeaderError::Reserved | HeaderError::Argument(_) => {
            StatusCode::Invalid
        }
    })
}

/// Number of bytes in the buffers of one direction. Cannot overflow: a chain
/// has far fewer than 2^32 buffers of 32-bit length.
fn total(buffers: &[Buffer], writable: bool) -> u64 {
    buffers
        .iter()
        .filter(|buffer| buffer.writable == writable)
        .map(|buffer| u64::from(buffer.len))
        .sum()
}

/// The pieces of memory that hold the bytes `from..to` of the buffers of one
/// direction, counted over these buffers in order. An address that would wrap
/// is kept at the top, where no guest has memory.
fn cut(
    buffers: &[Buffer],
    writable: bool,
    from: u64,
    to: u64,
) -> impl Iterator<Item = Segment> + '_ {
    let mut position = 0;
    buffers
        .iter()
        .filter(move |buffer| buffer.writable == writable)
        .filter_map(move |buffer| {
            let start = position;
            position += u64::from(buffer.len);
            let low = from.max(start);
            let high = to.min(position);
            if low >= high {
                return None;
            }
            Some(Segment {
                addr: buffer
                    .addr
                    .checked_add(low - start)
                    .unwrap_or(GuestAddress(u64::MAX)),
                // Fits: the piece is no longer than the buffer.
                len: (high - low) as u32,
            })
        })
}

/// Whether the whole segment is guest memory. A segment may span regions.
fn in_memory<M: GuestMemory>(mem: &M, segment: &Segment, writable: bool) -> bool {
    let access = if writable {
        Permissions::Write
    } else {
        Permissions::Read
    };
    segment
        .addr
        .checked_add(u64::from(segment.len))
        .is_some_and(|_| mem.check_range(segment.addr, segment.len as usize, access))
}
