// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests of all kinds, valid and not, one after the other on a storage that changes its size.
//!
//! The model executes the same requests byte by byte. After each of them its guest memory, its
//! status and its length for the used ring are those of the device, and so is the storage.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use ringbar_engine::chain::ChainHead;
use ringbar_model::{Completed, QueueRole, RequestQueue};
use ringbar_spec::{ConfigParts, DeviceConfig, Opcode, QueueFault, RequestHeader, StatusCode};
use ringbar_spec::{HeaderError, RequestStatus};
use ringbar_storage::{MemoryStorage, Storage};
use vm_memory::{GuestAddress, Permissions, VolatileSlice};

use crate::guest::{
    Guest, INDIRECT, Image, NEXT, Place, RawBuffer, RawDescriptor, WRITE, byte_address, total,
};

/// Where the queue's table is, and an indirect one. Data may lie on both.
const TABLE: u64 = 0x1000;
const INDIRECT_TABLE: u64 = 0x1ff8;
const QUEUE_SIZE: u16 = 32;

const MAX_CAPACITY: u64 = 6000;
const MAX_SEGMENTS: u16 = 4;
const MAX_REQUEST: u32 = 2000;
const MAX_COMMAND: u64 = 3000;

/// Number of data buffers in each direction.
const MAX_BUFFERS: usize = 5;

#[derive(Arbitrary, Debug)]
enum Step {
    Request(Request),
    /// The host gives the device another size.
    Resize(u16),
    /// The driver stores a byte in a part of its memory.
    Store(Place, u8),
}

#[derive(Arbitrary, Debug)]
struct Request {
    control: bool,
    header: Header,
    header_at: Place,
    /// After how many bytes the next buffer begins, where it is less than the size.
    header_split: u8,
    readable: Vec<DataBuffer>,
    writable: Vec<DataBuffer>,
    status_at: Place,
    status_split: u8,
    /// Two descriptors that change places.
    swap: Option<(u8, u8)>,
    indirect: bool,
    /// What the monitor answers to a request for a mapping.
    mapping: Option<bool>,
}

#[derive(Arbitrary, Debug)]
struct DataBuffer {
    at: Place,
    length: BufferLength,
}

#[derive(Arbitrary, Debug)]
enum BufferLength {
    Bytes(u8),
    More(u16),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
struct Header {
    opcode: RawOpcode,
    flags: Flags,
    offset: Offset,
    length: Length,
    argument: Option<Offset>,
    /// Another value of one byte.
    damage: Option<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
enum RawOpcode {
    Known(u8),
    Any(u16),
}

#[derive(Arbitrary, Debug)]
enum Flags {
    None,
    Durable,
    Any(u16),
}

#[derive(Arbitrary, Debug)]
enum Offset {
    Bytes(u16),
    /// Close to the end of the device memory.
    End(i8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Length {
    /// That of the data, or what the opcode has without any.
    Fitting,
    Bytes(u16),
    /// Close to the greatest of a command.
    Greatest(i8),
    Any(u64),
}

const OPCODES: [Opcode; 10] = [
    Opcode::Read,
    Opcode::Write,
    Opcode::Flush,
    Opcode::Discard,
    Opcode::WriteZeroes,
    Opcode::Copy,
    Opcode::Fill,
    Opcode::Compare,
    Opcode::Crc32c,
    Opcode::MapAperture,
];

impl Header {
    fn bytes(&self, capacity: u64, readable: u64, writable: u64) -> [u8; RequestHeader::SIZE] {
        let opcode = match self.opcode {
            RawOpcode::Known(number) => OPCODES[usize::from(number) % OPCODES.len()] as u16,
            RawOpcode::Any(opcode) => opcode,
        };
        let flags = match self.flags {
            Flags::None => 0,
            Flags::Durable => RequestHeader::FUA,
            Flags::Any(flags) => flags,
        };
        let offset = |offset: &Offset| match offset {
            Offset::Bytes(bytes) => u64::from(*bytes) % MAX_CAPACITY,
            Offset::End(bytes) => capacity.wrapping_add_signed((*bytes).into()),
            Offset::Any(offset) => *offset,
        };
        let length = match self.length {
            Length::Fitting if opcode == Opcode::Read as u16 => writable,
            Length::Fitting if opcode == Opcode::Write as u16 => readable,
            Length::Fitting => 0,
            Length::Bytes(bytes) => u64::from(bytes) % MAX_CAPACITY,
            Length::Greatest(bytes) => MAX_COMMAND.wrapping_add_signed(bytes.into()),
            Length::Any(length) => length,
        };
        let mut bytes = [0; RequestHeader::SIZE];
        bytes[..2].copy_from_slice(&opcode.to_le_bytes());
        bytes[2..4].copy_from_slice(&flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&offset(&self.offset).to_le_bytes());
        bytes[16..24].copy_from_slice(&length.to_le_bytes());
        let argument = self.argument.as_ref().map_or(0, offset);
        bytes[24..].copy_from_slice(&argument.to_le_bytes());
        if let Some((at, value)) = self.damage {
            bytes[usize::from(at) % RequestHeader::SIZE] = value;
        }
        bytes
    }
}

impl Request {
    /// The buffers of the chain.
    fn buffers(&self) -> Vec<RawBuffer> {
        let mut buffers = Vec::new();
        push_split(
            &mut buffers,
            self.header_at,
            RequestHeader::SIZE as u32,
            self.header_split,
            false,
        );
        for (data, writable) in [(&self.readable, false), (&self.writable, true)] {
            for buffer in data.iter().take(MAX_BUFFERS) {
                let length = match buffer.length {
                    BufferLength::Bytes(bytes) => bytes.into(),
                    BufferLength::More(bytes) => u32::from(bytes) % MAX_REQUEST,
                    BufferLength::Any(length) => length,
                };
                buffers.push((buffer.at.address(), length, writable));
            }
        }
        push_split(
            &mut buffers,
            self.status_at,
            RequestStatus::SIZE as u32,
            self.status_split,
            true,
        );
        if let Some((one, other)) = self.swap {
            let count = buffers.len();
            buffers.swap(usize::from(one) % count, usize::from(other) % count);
        }
        buffers
    }

    /// Puts header and descriptors into guest memory.
    fn put(&self, guest: &Guest, buffers: &[RawBuffer], capacity: u64) {
        let data = |writable, size| total(buffers, writable).saturating_sub(size);
        let header = self.header.bytes(
            capacity,
            data(false, RequestHeader::SIZE as u64),
            data(true, RequestStatus::SIZE as u64),
        );
        guest.put(self.header_at.address(), &header);
        let table = match self.indirect {
            true => INDIRECT_TABLE,
            false => TABLE,
        };
        let mut bytes = Vec::new();
        for (index, (address, length, writable)) in (1..).zip(buffers) {
            let next = match usize::from(index) == buffers.len() {
                true => 0,
                false => NEXT,
            };
            let descriptor = RawDescriptor {
                address: *address,
                length: *length,
                flags: next | if *writable { WRITE } else { 0 },
                next: index,
            };
            bytes.extend(descriptor.to_bytes());
        }
        guest.put(table, &bytes);
        if self.indirect {
            let descriptor = RawDescriptor {
                address: table,
                length: bytes.len() as u32,
                flags: INDIRECT,
                next: 0,
            };
            guest.put(TABLE, &descriptor.to_bytes());
        }
    }
}

fn push_split(buffers: &mut Vec<RawBuffer>, at: Place, size: u32, split: u8, writable: bool) {
    let at = at.address();
    let split = u32::from(split);
    if split < size {
        buffers.push((at, split, writable));
        buffers.push((at.wrapping_add(split.into()), size - split, writable));
    } else {
        buffers.push((at, size, writable));
    }
}

thread_local! {
    static GUEST: Guest = Guest::new();
    static STORAGE: Arc<MemoryStorage> = Arc::new(MemoryStorage::new(MAX_CAPACITY).unwrap());
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    GUEST.with(|guest| {
        guest.clear();
        let mut run = Run::new(guest, STORAGE.with(Arc::clone));
        while !input.is_empty()
            && let Ok(step) = Step::arbitrary(&mut input)
        {
            run.step(&step);
        }
        run.compare_storage();
    });
}

struct Run<'a> {
    guest: &'a Guest,
    storage: Arc<MemoryStorage>,
    io: RequestQueue,
    control: RequestQueue,
    /// What the storage holds, also beyond its present size.
    contents: Vec<u8>,
}

impl<'a> Run<'a> {
    fn new(guest: &'a Guest, storage: Arc<MemoryStorage>) -> Self {
        let capacity = MAX_CAPACITY;
        let config = DeviceConfig::new(ConfigParts {
            io_queues: 1,
            max_segments: MAX_SEGMENTS,
            capacity,
            aperture_bytes: 0,
            max_request_bytes: MAX_REQUEST,
            operations: Opcode::Read.mask()
                | Opcode::Write.mask()
                | Opcode::Flush.mask()
                | Opcode::COMMANDS,
            max_command_bytes: MAX_COMMAND,
        });
        let config = config.unwrap();
        storage.resize(capacity).unwrap();
        storage.write_zeroes(0, capacity).unwrap();
        let queue = |role| RequestQueue::new(config, role, Arc::clone(&storage) as _);
        Self {
            guest,
            io: queue(QueueRole::Io),
            control: queue(QueueRole::Control),
            storage,
            contents: vec![0; capacity as usize],
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Request(request) => self.request(request),
            Step::Resize(capacity) => {
                let capacity = 1 + u64::from(*capacity) % MAX_CAPACITY;
                self.storage.resize(capacity).unwrap();
            }
            Step::Store(at, byte) => {
                let bytes = Vec::from_iter((0..=255).map(|n: u8| byte.wrapping_add(n)));
                self.guest.put(at.address(), &bytes);
            }
        }
    }

    fn request(&mut self, request: &Request) {
        let buffers = request.buffers();
        let capacity = self.storage.capacity();
        request.put(self.guest, &buffers, capacity);
        let mut image = self.guest.image();
        // Table or header may lie on the other.
        let head = ChainHead {
            table: GuestAddress(TABLE),
            queue_size: QUEUE_SIZE,
            index: 0,
        };
        let mapping = request.mapping.map(|works| match works {
            true => status(StatusCode::Ok, 4096),
            false => status(StatusCode::ApertureUnavailable, 0),
        });
        let mut reference = Reference {
            image: &mut image,
            contents: &mut self.contents,
            capacity,
            role: match request.control {
                true => QueueRole::Control,
                false => QueueRole::Io,
            },
        };
        let expected = reference.process(&buffers, mapping);
        let queue = match request.control {
            true => &mut self.control,
            false => &mut self.io,
        };
        let mut asked = false;
        let result = queue.process(&self.guest.memory, head, || {
            asked = true;
            mapping
        });
        assert_eq!(result, expected);
        assert!(!asked || request.control);
        let failure = queue.take_failure();
        assert!(failure.is_none(), "{failure:?}");
        let difference = self.guest.image().difference(&image);
        assert_eq!(difference, None, "guest memory differs");
    }

    fn compare_storage(&self) {
        self.storage.resize(MAX_CAPACITY).unwrap();
        let mut bytes = vec![0; MAX_CAPACITY as usize];
        self.storage
            .read(0, VolatileSlice::from(&mut bytes[..]))
            .unwrap();
        assert!(bytes == self.contents, "the storage differs");
    }
}

const fn status(code: StatusCode, result: u64) -> RequestStatus {
    RequestStatus { code, result }
}

/// The device, byte by byte.
struct Reference<'a> {
    image: &'a mut Image,
    contents: &'a mut [u8],
    capacity: u64,
    role: QueueRole,
}

/// A valid request, and where its data is.
struct Valid {
    header: RequestHeader,
    data: Vec<u128>,
}

impl Reference<'_> {
    fn process(
        &mut self,
        buffers: &[RawBuffer],
        mapping: Option<RequestStatus>,
    ) -> Result<Option<Completed>, QueueFault> {
        let writable = total(buffers, true);
        let before = writable
            .checked_sub(RequestStatus::SIZE as u64)
            .ok_or(QueueFault::NoStatus)?;
        let places = Vec::from_iter((before..writable).map(|at| byte_address(buffers, true, at)));
        let writes = |image: &mut Image, at| image.byte(at, Permissions::Write).is_some();
        if !places.iter().all(|at| writes(self.image, *at)) {
            return Err(QueueFault::Address);
        }
        let (header, status) = match self.validate(buffers) {
            Err(code) => (None, status(code, 0)),
            Ok(request) if request.header.opcode == Opcode::MapAperture => match mapping {
                None => return Ok(None),
                Some(status) => (Some(request.header), status),
            },
            Ok(request) => {
                let result = self.execute(&request);
                (Some(request.header), status(StatusCode::Ok, result))
            }
        };
        for (at, byte) in places.into_iter().zip(status.to_bytes()) {
            *self.image.byte(at, Permissions::Write).unwrap() = byte;
        }
        let opcode = header.map(|header| header.opcode);
        // Bytes that were written from the first one on without a gap.
        let data = match opcode {
            Some(Opcode::Read) => status.result,
            _ => 0,
        };
        let used = match data == before {
            true => writable,
            false => data,
        };
        Ok(Some(Completed {
            opcode,
            status,
            durable: header.is_some_and(|header| header.flags == RequestHeader::FUA),
            used_len: used as u32,
        }))
    }

    fn validate(&mut self, buffers: &[RawBuffer]) -> Result<Valid, StatusCode> {
        let invalid = Err(StatusCode::Invalid);
        let readable = total(buffers, false);
        let first_writable = buffers.iter().position(|buffer| buffer.2);
        let is_sorted = buffers[first_writable.unwrap_or(0)..].iter().all(|b| b.2);
        if !is_sorted || readable < RequestHeader::SIZE as u64 {
            return invalid;
        }
        let mut raw = [0; RequestHeader::SIZE];
        for (at, byte) in (0..).zip(&mut raw) {
            let place = byte_address(buffers, false, at);
            let found = self.image.byte(place, Permissions::Read);
            *byte = *found.ok_or(StatusCode::Invalid)?;
        }
        let header = RequestHeader::parse(&raw).map_err(|error| match error {
            HeaderError::Opcode(_) => StatusCode::Unsupported,
            _ => StatusCode::Invalid,
        })?;
        if (header.opcode == Opcode::MapAperture) != (self.role == QueueRole::Control) {
            return Err(StatusCode::Unsupported);
        }
        let into_device = Vec::from_iter(RequestHeader::SIZE as u64..readable.min(TOO_MUCH));
        let out_of_device =
            Vec::from_iter(0..(total(buffers, true) - RequestStatus::SIZE as u64).min(TOO_MUCH));
        let too_much = readable > TOO_MUCH || total(buffers, true) > TOO_MUCH;
        let is_write = header.opcode == Opcode::Write;
        let (positions, others) = match is_write {
            true => (into_device, out_of_device),
            false => (out_of_device, into_device),
        };
        let (length, limit) = match header.opcode {
            Opcode::Read | Opcode::Write => (header.length, u64::from(MAX_REQUEST)),
            Opcode::Flush | Opcode::MapAperture => (0, 0),
            _ => (0, MAX_COMMAND),
        };
        let is_flush = limit == 0;
        if too_much
            || !others.is_empty()
            || positions.len() as u64 != length
            || header.length > limit
            || is_flush && header.offset != 0
            || self.segments(buffers, !is_write, &positions) > usize::from(MAX_SEGMENTS)
        {
            return invalid;
        }
        let mut starts = vec![header.offset];
        if matches!(header.opcode, Opcode::Copy | Opcode::Compare) {
            starts.push(header.argument);
        }
        for start in starts {
            if u128::from(start) + u128::from(header.length) > u128::from(self.capacity) {
                return Err(StatusCode::OutOfRange);
            }
        }
        let access = match is_write {
            true => Permissions::Read,
            false => Permissions::Write,
        };
        let data = positions
            .iter()
            .map(|at| byte_address(buffers, !is_write, *at));
        let data = Vec::from_iter(data);
        match data.iter().all(|at| self.image.byte(*at, access).is_some()) {
            true => Ok(Valid { header, data }),
            false => invalid,
        }
    }

    /// Number of buffers with bytes at these positions of one direction, which follow each other.
    fn segments(&self, buffers: &[RawBuffer], writable: bool, positions: &[u64]) -> usize {
        let (Some(from), Some(last)) = (positions.first(), positions.last()) else {
            return 0;
        };
        let mut position = 0;
        let own = buffers.iter().filter(|buffer| buffer.2 == writable);
        let touched = own.filter(|buffer| {
            let start = position;
            position += u64::from(buffer.1);
            buffer.1 > 0 && start <= *last && position > *from
        });
        touched.count()
    }

    fn execute(&mut self, request: &Valid) -> u64 {
        let header = &request.header;
        let at = |start: u64, n: u64| (start + n) as usize;
        match header.opcode {
            Opcode::Read => {
                for (n, place) in (0..).zip(&request.data) {
                    let target = self.image.byte(*place, Permissions::Write).unwrap();
                    *target = self.contents[at(header.offset, n)];
                }
            }
            Opcode::Write => {
                for (n, place) in (0..).zip(&request.data) {
                    let source = self.image.byte(*place, Permissions::Read).unwrap();
                    self.contents[at(header.offset, n)] = *source;
                }
            }
            Opcode::Flush | Opcode::MapAperture => return 0,
            Opcode::Discard | Opcode::WriteZeroes => {
                for n in 0..header.length {
                    self.contents[at(header.offset, n)] = 0;
                }
            }
            Opcode::Copy => {
                let source = at(header.argument, 0)..at(header.argument, header.length);
                let source = self.contents[source].to_vec();
                for (n, byte) in (0..).zip(source) {
                    self.contents[at(header.offset, n)] = byte;
                }
            }
            Opcode::Fill => {
                let pattern = header.argument.to_le_bytes();
                for n in 0..header.length {
                    self.contents[at(header.offset, n)] = pattern[n as usize % 8];
                }
            }
            Opcode::Compare => {
                let byte = |start, n| self.contents[at(start, n)];
                let differs = |n: &u64| byte(header.offset, *n) != byte(header.argument, *n);
                return (0..header.length).find(differs).unwrap_or(header.length);
            }
            Opcode::Crc32c => {
                let range = at(header.offset, 0)..at(header.offset, header.length);
                return crc32c(header.argument as u32, &self.contents[range]).into();
            }
        }
        header.length
    }
}

/// More data than any request may have.
const TOO_MUCH: u64 = MAX_REQUEST as u64 + 100;

/// Bit by bit, from the definition (RFC 3720, 12.1).
fn crc32c(before: u32, bytes: &[u8]) -> u32 {
    let mut register = !before;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            let polynomial = match register & 1 {
                0 => 0,
                _ => 0x1edc_6f41u32.reverse_bits(),
            };
            register = register >> 1 ^ polynomial;
        }
    }
    !register
}
