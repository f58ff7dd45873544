// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The walk of a descriptor chain over arbitrary guest memory, and the validation of what it finds
//! as a request.
//!
//! The model is a walk that remembers which descriptors it has seen. The device reads each
//! descriptor once, no more of them than its limit, and accepts only data that it may access.

use std::cell::RefCell;
use std::collections::HashSet;

use arbitrary::{Arbitrary, Unstructured};
use ringbar_engine::chain::ChainHead;
use ringbar_engine::{Chain, Fault};
use ringbar_model::request::ParsedChain;
use ringbar_model::{Limits, QueueRole};
use ringbar_spec::{ConfigParts, DeviceConfig, Opcode, RequestHeader, RequestStatus};
use ringbar_vfio_user::dma::DmaMemory;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result as GuestMemoryResult};
use vm_memory::{Address, GuestAddress, GuestMemory, Permissions};

use crate::guest::{
    Guest, INDIRECT, Image, NEXT, Place, RawBuffer, RawDescriptor, WRITE, byte_address, total,
};

/// Size of a descriptor in bytes.
const DESCRIPTOR: u32 = 16;

const CAPACITY: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Plan {
    /// Where the queue's table is, and binary logarithm of its size.
    table: Place,
    size: u8,
    head: u16,
    limit: u8,
    /// Bytes anywhere.
    noise: Vec<(Place, [u8; 4])>,
    tables: Vec<Table>,
    /// A header in the first readable buffer, of which the length is made to fit.
    header: Option<Header>,
    control: bool,
}

#[derive(Arbitrary, Debug)]
struct Table {
    /// Where it is, if it is not the queue's.
    at: Option<Place>,
    descriptors: Vec<Descriptor>,
}

#[derive(Arbitrary, Debug)]
struct Descriptor {
    address: Place,
    length: Length,
    flags: Flags,
    next: Next,
}

#[derive(Arbitrary, Debug)]
enum Length {
    Bytes(u8),
    Header,
    Status,
    /// Of a table.
    Descriptors(u8),
    /// Close to the greatest.
    Great(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Flags {
    Readable,
    Writable,
    LastReadable,
    LastWritable,
    Indirect,
    /// Each of these is an error or has no meaning with an indirect table.
    IndirectNext,
    IndirectWritable,
    Any(u16),
}

#[derive(Arbitrary, Debug)]
enum Next {
    Following,
    Index(u8),
    Any(u16),
}

#[derive(Arbitrary, Debug)]
struct Header {
    opcode: u8,
    offset: u32,
    durable: bool,
}

impl Descriptor {
    fn raw(&self, index: u16) -> RawDescriptor {
        RawDescriptor {
            address: self.address.address(),
            length: match self.length {
                Length::Bytes(bytes) => bytes.into(),
                Length::Header => RequestHeader::SIZE as u32,
                Length::Status => RequestStatus::SIZE as u32,
                Length::Descriptors(count) => u32::from(count) * DESCRIPTOR,
                Length::Great(below) => !u32::from(below),
                Length::Any(length) => length,
            },
            flags: match self.flags {
                Flags::Readable => NEXT,
                Flags::Writable => NEXT | WRITE,
                Flags::LastReadable => 0,
                Flags::LastWritable => WRITE,
                Flags::Indirect => INDIRECT,
                Flags::IndirectNext => INDIRECT | NEXT,
                Flags::IndirectWritable => INDIRECT | WRITE,
                Flags::Any(flags) => flags,
            },
            next: match self.next {
                Next::Following => index.wrapping_add(1),
                Next::Index(index) => index.into(),
                Next::Any(index) => index,
            },
        }
    }
}

/// Guest memory that remembers what was read.
struct Watched<'a> {
    memory: &'a DmaMemory,
    reads: RefCell<Vec<(u64, usize)>>,
}

impl GuestMemory for Watched<'_> {
    type PhysicalMemory = <DmaMemory as GuestMemory>::PhysicalMemory;
    type Bitmap = <DmaMemory as GuestMemory>::Bitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.memory.check_range(addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        assert_eq!(access, Permissions::Read);
        self.reads.borrow_mut().push((addr.0, count));
        self.memory.get_slices(addr, count, access)
    }
}

thread_local! {
    static GUEST: Guest = Guest::new();
}

/// Runs one input.
pub fn run(data: &[u8]) {
    if let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) {
        GUEST.with(|guest| {
            guest.clear();
            run_plan(guest, &plan);
        });
    }
}

fn run_plan(guest: &Guest, plan: &Plan) {
    let head = ChainHead {
        table: GuestAddress(plan.table.address()),
        queue_size: 1 << (plan.size % 16),
        index: plan.head % 300,
    };
    for (at, bytes) in &plan.noise {
        guest.put(at.address(), bytes);
    }
    for table in &plan.tables {
        let at = table.at.unwrap_or(plan.table).address();
        for (index, descriptor) in (0..).zip(&table.descriptors) {
            let bytes = descriptor.raw(index).to_bytes();
            let offset = u64::from(index) * u64::from(DESCRIPTOR);
            guest.put(at.wrapping_add(offset), &bytes);
        }
    }
    let limit = usize::from(plan.limit);
    let expected = walk(&mut guest.image(), head, limit);
    if let (Some(header), (Ok(buffers), _)) = (&plan.header, &expected) {
        put_header(guest, header, buffers);
    }
    // The header may have changed a descriptor.
    let mut image = guest.image();
    let (expected, visited) = walk(&mut image, head, limit);

    let watched = Watched {
        memory: &guest.memory,
        reads: RefCell::default(),
    };
    let mut chain = Chain::with_limit(limit);
    let result = chain.read(&watched, head);
    let reads = watched.reads.take();
    let raw = |buffer: &ringbar_engine::Buffer| (buffer.addr.0, buffer.len, buffer.writable);
    let found = result.map(|()| Vec::from_iter(chain.buffers().iter().map(raw)));
    assert_eq!(found, expected);
    assert!(chain.buffers().len() <= limit);
    // One more than the limit shows that a chain exceeds it, and one has an indirect table.
    assert!(reads.len() <= limit + 2, "{} reads", reads.len());
    if result.is_ok() {
        let expected = visited.iter().map(|at| (*at, DESCRIPTOR as usize));
        assert!(
            reads.into_iter().eq(expected),
            "not each of {visited:x?} once"
        );
    }
    if let Ok(buffers) = &expected {
        validate(&mut image, &guest.memory, plan, buffers, &chain);
    }
}

/// The buffers of a chain, and the addresses of its descriptors.
fn walk(
    image: &mut Image,
    head: ChainHead,
    limit: usize,
) -> (Result<Vec<RawBuffer>, Fault>, Vec<u64>) {
    let mut visited = Vec::new();
    if head.index >= head.queue_size {
        return (Err(Fault::Ring), visited);
    }
    let (mut table, mut size) = (head.table.0, u32::from(head.queue_size));
    let mut index = u32::from(head.index);
    let (mut is_indirect, mut seen, mut buffers) = (false, HashSet::new(), Vec::new());
    let result = loop {
        if index >= size || !seen.insert(index) {
            break Err(Fault::Chain);
        }
        let at = u128::from(table) + u128::from(index * DESCRIPTOR);
        let Some(bytes) = image.array(at) else {
            break Err(Fault::Address);
        };
        visited.push(at as u64);
        let descriptor = RawDescriptor::parse(bytes);
        if descriptor.flags & INDIRECT != 0 {
            let count = descriptor.length / DESCRIPTOR;
            let is_possible = !is_indirect
                && descriptor.flags & NEXT == 0
                && descriptor.length.is_multiple_of(DESCRIPTOR)
                && (1..=0xffff).contains(&count);
            if !is_possible {
                break Err(Fault::Chain);
            }
            (table, size, index, is_indirect) = (descriptor.address, count, 0, true);
            seen.clear();
            continue;
        }
        if buffers.len() == limit {
            break Err(Fault::Chain);
        }
        let is_writable = descriptor.flags & WRITE != 0;
        buffers.push((descriptor.address, descriptor.length, is_writable));
        if descriptor.flags & NEXT == 0 {
            break Ok(buffers);
        }
        index = descriptor.next.into();
    };
    (result, visited)
}

fn put_header(guest: &Guest, header: &Header, buffers: &[RawBuffer]) {
    const OPCODES: [Opcode; 5] = [
        Opcode::Read,
        Opcode::Write,
        Opcode::Flush,
        Opcode::Copy,
        Opcode::MapAperture,
    ];
    let opcode = OPCODES[usize::from(header.opcode) % OPCODES.len()];
    let data = match opcode {
        Opcode::Read => total(buffers, true).saturating_sub(RequestStatus::SIZE as u64),
        Opcode::Write => total(buffers, false).saturating_sub(RequestHeader::SIZE as u64),
        _ => 0,
    };
    let mut whole = RequestHeader::command(opcode, header.offset.into(), data, 0);
    whole.flags = header.durable.into();
    if let Some((address, ..)) = buffers.iter().find(|buffer| !buffer.2) {
        guest.put(*address, &whole.to_bytes());
    }
}

fn validate(
    image: &mut Image,
    memory: &DmaMemory,
    plan: &Plan,
    buffers: &[RawBuffer],
    chain: &Chain,
) {
    let config = DeviceConfig::new(ConfigParts {
        io_queues: 1,
        max_segments: 8,
        capacity: CAPACITY,
        aperture_bytes: 0,
        max_request_bytes: u32::MAX,
        operations: Opcode::Read.mask()
            | Opcode::Write.mask()
            | Opcode::Flush.mask()
            | Opcode::COMMANDS,
        max_command_bytes: CAPACITY,
    });
    let limits = Limits::new(config.unwrap());
    let role = match plan.control {
        true => QueueRole::Control,
        false => QueueRole::Io,
    };
    let mut parsed = ParsedChain::default();
    let result = parsed.parse(&limits, role, memory, chain.buffers(), CAPACITY);
    let writable = total(buffers, true);
    let expected = match writable.checked_sub(RequestStatus::SIZE as u64) {
        None => Err(Fault::NoAnswer),
        Some(before) => {
            let mut places = (before..writable).map(|at| byte_address(buffers, true, at));
            match places.all(|at| image.byte(at, Permissions::Write).is_some()) {
                true => Ok(()),
                false => Err(Fault::Address),
            }
        }
    };
    assert_eq!(result.map(|_| ()), expected);
    let Ok(Ok(())) = result else { return };

    let header = parsed.header().unwrap();
    assert_eq!(header.opcode.is_control(), plan.control);
    assert!(header.offset + header.length <= CAPACITY);
    let access = match header.opcode {
        Opcode::Write => Permissions::Read,
        _ => Permissions::Write,
    };
    let mut bytes = 0;
    for segment in parsed.data() {
        assert!(segment.len > 0);
        bytes += u64::from(segment.len);
        let first = u128::from(segment.addr.raw_value());
        for at in first..first + u128::from(segment.len) {
            assert!(image.byte(at, access).is_some(), "{at:#x} for {header:?}");
        }
    }
    match header.opcode {
        Opcode::Read | Opcode::Write => assert_eq!(bytes, header.length),
        _ => assert_eq!(bytes, 0),
    }
}
