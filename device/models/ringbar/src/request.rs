// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Validation of a descriptor chain as a request.
//!
//! The distribution of a request's bytes over descriptors has no meaning (VIRTIO 1.3, 2.7.4).
//! The header is the first [`RequestHeader::SIZE`] device-readable bytes, the status is the
//! last [`RequestStatus::SIZE`] device-writable bytes, and the data is between them.

use ringbar_engine::{Buffer, Fault};
use ringbar_faults::RequestFaults;
use ringbar_spec::{DeviceConfig, HeaderError, Opcode, RequestHeader, RequestStatus, StatusCode};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

use crate::command::Progress;
use crate::steps::Steps;

/// Limits of the requests that a device accepts. The capacity is not among them, because it
/// can change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    config: DeviceConfig,
}

impl Limits {
    /// The limits that a device announces in its configuration space.
    pub const fn new(config: DeviceConfig) -> Self {
        Self { config }
    }

    /// Greatest number of buffers of a chain within the limits: the data segments, and a header
    /// and a status that are split into single bytes.
    pub const fn max_buffers(&self) -> usize {
        self.config.max_segments() as usize + RequestHeader::SIZE + RequestStatus::SIZE
    }
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub addr: GuestAddress,
    /// Length in bytes, not 0.
    pub len: u32,
}

/// Role of a queue, which decides the opcodes that it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// The control queue.
    Control,
    /// An I/O queue.
    Io,
}

/// The guest memory for the status of a request.
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
    /// [`Fault::Address`] where `mem` no longer contains that memory.
    pub fn write<M: GuestMemory>(&self, mem: &M, status: RequestStatus) -> Result<(), Fault> {
        let bytes = status.to_bytes();
        let mut rest = &bytes[..];
        for segment in &self.segments {
            let (chunk, after) = rest
                .split_at_checked(segment.len as usize)
                .ok_or(Fault::Address)?;
            mem.write_slice(chunk, segment.addr)
                .map_err(|_| Fault::Address)?;
            rest = after;
        }
        Ok(())
    }
}

/// A chain that was read and validated. The engine keeps it with its request and reuses it
/// for later requests, so parsing allocates nothing.
#[derive(Debug, Default)]
pub struct ParsedChain {
    /// The guest memory for the status.
    pub(crate) status: StatusSlot,
    /// Number of device-writable bytes before the status.
    pub(crate) writable: u64,
    data: Vec<Segment>,
    /// # Invariants
    ///
    /// If it is `Some`:
    ///
    /// - the opcode fits the queue's role and the device executes it;
    /// - offset plus length is within the capacity, and so is the second range of a command
    ///   that has one;
    /// - the data segments are in guest memory and have `length` bytes in sum for a read or
    ///   write; other opcodes have none.
    header: Option<RequestHeader>,
    /// Progress of a command.
    pub(crate) progress: Progress,
    /// What the request waits for, where its storage is asynchronous.
    pub(crate) steps: Steps,
    /// What rules do to the request.
    pub(crate) faults: RequestFaults,
}

impl ParsedChain {
    /// The header; `None` where the request was refused.
    pub const fn header(&self) -> Option<&RequestHeader> {
        self.header.as_ref()
    }

    /// The data segments.
    pub fn data(&self) -> &[Segment] {
        &self.data
    }

    /// Leaves the first half of the data of a read or write, rounded down.
    pub(crate) fn shorten(&mut self) {
        let Some(header) = &mut self.header else {
            return;
        };
        header.length /= 2;
        // INVARIANT: the segments have as many bytes as the header says.
        let mut left = header.length;
        self.data.retain_mut(|segment| {
            // Fits: no more than the segment has.
            segment.len = u64::from(segment.len).min(left) as u32;
            left -= u64::from(segment.len);
            segment.len > 0
        });
    }

    /// Validates the request in `buffers`, of a queue with this role, for a device of `capacity`
    /// bytes. `Ok(Err(code))` refuses the request with that code.
    ///
    /// # Errors
    ///
    /// The chain has no place for a status: [`Fault::NoAnswer`] with fewer than
    /// [`RequestStatus::SIZE`] writable bytes, [`Fault::Address`] where these are not all in
    /// guest memory.
    pub fn parse<M: GuestMemory>(
        &mut self,
        limits: &Limits,
        role: QueueRole,
        mem: &M,
        buffers: &[Buffer],
        capacity: u64,
    ) -> Result<Result<(), StatusCode>, Fault> {
        self.header = None;
        self.progress = Progress::default();
        self.steps = Steps::default();
        self.faults = RequestFaults::default();
        self.find_status(mem, buffers)?;
        Ok(self
            .validate(&limits.config, role, mem, buffers, capacity)
            .map(|header| self.header = Some(header)))
    }

    fn find_status<M: GuestMemory>(&mut self, mem: &M, buffers: &[Buffer]) -> Result<(), Fault> {
        let writable = total(buffers, true);
        self.writable = writable
            .checked_sub(RequestStatus::SIZE as u64)
            .ok_or(Fault::NoAnswer)?;
        let segments = &mut self.status.segments;
        segments.clear();
        segments.extend(slice(buffers, true, self.writable, writable));
        // INVARIANT: the segments are the last SIZE writable bytes, checked here.
        if !segments.iter().all(|segment| in_memory(mem, segment, true)) {
            return Err(Fault::Address);
        }
        Ok(())
    }

    fn validate<M: GuestMemory>(
        &mut self,
        config: &DeviceConfig,
        role: QueueRole,
        mem: &M,
        buffers: &[Buffer],
        capacity: u64,
    ) -> Result<RequestHeader, StatusCode> {
        let data_writable = self.writable;
        // VIRTIO 1.3, 2.7.4.2: device-writable after device-readable.
        if !buffers.is_sorted_by_key(|buffer| buffer.writable) {
            return Err(StatusCode::Invalid);
        }
        let readable = total(buffers, false);
        let data_readable = readable
            .checked_sub(RequestHeader::SIZE as u64)
            .ok_or(StatusCode::Invalid)?;
        let header = read_header(mem, buffers)?;

        if header.opcode.is_control() != (role == QueueRole::Control)
            || !config.supports(header.opcode)
        {
            return Err(StatusCode::Unsupported);
        }

        let max_data = u64::from(config.max_request_bytes());
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
            | Opcode::Crc32c => (true, data_readable, 0, config.max_command_bytes()),
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
        self.data.extend(slice(buffers, writable, from, to));
        if self.data.len() > usize::from(config.max_segments()) {
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

/// Copies the header out of guest memory once, and parses the copy.
fn read_header<M: GuestMemory>(mem: &M, buffers: &[Buffer]) -> Result<RequestHeader, StatusCode> {
    let mut bytes = [0; RequestHeader::SIZE];
    let mut rest = &mut bytes[..];
    for segment in slice(buffers, false, 0, RequestHeader::SIZE as u64) {
        let (chunk, after) = rest
            .split_at_mut_checked(segment.len as usize)
            .ok_or(StatusCode::Invalid)?;
        if !in_memory(mem, &segment, false) {
            return Err(StatusCode::Invalid);
        }
        mem.read_slice(chunk, segment.addr)
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

/// Number of bytes in the buffers of one direction. The sum cannot overflow: a chain has fewer
/// than 2^32 buffers, each of a 32-bit length.
fn total(buffers: &[Buffer], writable: bool) -> u64 {
    buffers
        .iter()
        .filter(|buffer| buffer.writable == writable)
        .map(|buffer| u64::from(buffer.len))
        .sum()
}

/// A segment that reaches beyond the address space, so that it is in no memory.
const BEYOND: Segment = Segment {
    addr: GuestAddress(u64::MAX),
    len: 2,
};

/// The segments with the bytes `from..to` of the buffers of one direction, counted over these
/// buffers in order. One whose address would overflow is [`BEYOND`].
fn slice(
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
            let segment = |addr| Segment {
                addr,
                // Fits: the segment is no longer than the buffer.
                len: (high - low) as u32,
            };
            Some(buffer.addr.checked_add(low - start).map_or(BEYOND, segment))
        })
}

/// Whether the whole segment is in guest memory. A segment may span memory regions, and end with
/// the address space.
fn in_memory<M: GuestMemory>(mem: &M, segment: &Segment, writable: bool) -> bool {
    let access = if writable {
        Permissions::Write
    } else {
        Permissions::Read
    };
    segment
        .addr
        .checked_add(u64::from(segment.len) - 1)
        .is_some_and(|_| mem.check_range(segment.addr, segment.len as usize, access))
}
