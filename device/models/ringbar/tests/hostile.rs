// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arbitrary descriptor tables, most of them invalid, against a reference that computes guest
//! memory, storage and used ring byte by byte.

mod commands_reference;
mod support;

use commands_reference::{COMMANDS, execute};
use proptest::prelude::*;
use proptest::sample::select;
use ringbar_engine::Chain;
use ringbar_model::Completed;
use ringbar_spec::{HeaderError, Opcode, QueueFault, RequestHeader, RequestStatus, StatusCode};
use support::{
    CAPACITY, Desc, Guest, INDIRECT, MAX_REQUEST, MAX_SEGMENTS, NEXT, QUEUE_SIZE, REGIONS, TABLE,
    WRITE, desc, head, max_command, put_table,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress};

/// Addresses of indirect tables and headers, to which descriptors often point.
const SECOND_TABLE: u64 = 0x1000;
const THIRD_TABLE: u64 = 0x7f98; // across two regions
const HEADERS: u64 = 0x2000;

/// Greatest number of buffers of a valid chain.
const MAX_BUFFERS: usize = MAX_SEGMENTS as usize + RequestHeader::SIZE + RequestStatus::SIZE;

/// A buffer, as the reference sees it.
type RawBuffer = (u64, u32, bool);

/// Guest memory of the reference: bytes by address.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn byte(&mut self, addr: u64) -> Option<&mut u8> {
        REGIONS
            .iter()
            .zip(&mut self.0)
            .find(|((start, len), _)| (*start..start + len).contains(&addr))
            .map(|((start, _), bytes)| &mut bytes[(addr - start) as usize])
    }

    fn has(&mut self, addr: u128) -> bool {
        u64::try_from(addr).is_ok_and(|addr| self.byte(addr).is_some())
    }

    fn bytes<const N: usize>(&mut self, addr: u128) -> Option<[u8; N]> {
        let mut out = [0; N];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = *self.byte(u64::try_from(addr + i as u128).ok()?)?;
        }
        Some(out)
    }

    fn descriptor(&mut self, table: u64, index: u32) -> Option<Desc> {
        let raw: [u8; 16] = self.bytes(u128::from(table) + 16 * u128::from(index))?;
        Some(desc(
            u64::from_le_bytes(raw[0..8].try_into().unwrap()),
            u32::from_le_bytes(raw[8..12].try_into().unwrap()),
            u16::from_le_bytes(raw[12..14].try_into().unwrap()),
            u16::from_le_bytes(raw[14..16].try_into().unwrap()),
        ))
    }

    /// The buffers of the chain at descriptor 0.
    fn chain(&mut self) -> Result<Vec<RawBuffer>, QueueFault> {
        let (mut table, mut size, mut index) = (TABLE, u32::from(QUEUE_SIZE), 0);
        let mut indirect = false;
        let mut seen = std::collections::HashSet::new();
        let mut buffers = Vec::new();
        loop {
            if index >= size || !seen.insert((table, index)) {
                return Err(QueueFault::Chain);
            }
            let d = self.descriptor(table, index).ok_or(QueueFault::Address)?;
            if d.flags & INDIRECT != 0 {
                if indirect
                    || d.flags & NEXT != 0
                    || d.len == 0
                    || d.len % 16 != 0
                    || d.len / 16 > 65535
                {
                    return Err(QueueFault::Chain);
                }
                (table, size, index, indirect) = (d.addr, d.len / 16, 0, true);
                seen.clear();
                continue;
            }
            if buffers.len() == MAX_BUFFERS {
                return Err(QueueFault::Chain);
            }
            buffers.push((d.addr, d.len, d.flags & WRITE != 0));
            if d.flags & NEXT == 0 {
                return Ok(buffers);
            }
            index = u32::from(d.next);
        }
    }
}

/// Address of byte `position` of the buffers of one direction. 128 bits: an
/// address beyond the top stays beyond.
fn locate(buffers: &[RawBuffer], writable: bool, mut position: u64) -> u128 {
    for (addr, len, direction) in buffers {
        if *direction != writable {
            continue;
        }
        if position < u64::from(*len) {
            return u128::from(*addr) + u128::from(position);
        }
        position -= u64::from(*len);
    }
    unreachable!("position beyond the buffers")
}

fn sum(buffers: &[RawBuffer], writable: bool) -> u64 {
    buffers
        .iter()
        .filter(|buffer| buffer.2 == writable)
        .map(|buffer| u64::from(buffer.1))
        .sum()
}

/// Number of buffers with bytes in `from..to`.
fn segments(buffers: &[RawBuffer], writable: bool, from: u64, to: u64) -> usize {
    let mut position = 0;
    buffers
        .iter()
        .filter(|buffer| buffer.2 == writable)
        .filter(|buffer| {
            let start = position;
            position += u64::from(buffer.1);
            start.max(from) < position.min(to)
        })
        .count()
}

/// Validates a chain: returns the header, and the range of the data.
fn validate(
    memory: &mut Memory,
    buffers: &[RawBuffer],
) -> Result<(RequestHeader, u64, u64), StatusCode> {
    let (readable, writable) = (sum(buffers, false), sum(buffers, true) - 16);
    if buffers.windows(2).any(|two| two[0].2 && !two[1].2) || readable < 32 {
        return Err(StatusCode::Invalid);
    }
    let mut raw = [0; 32];
    for (i, byte) in raw.iter_mut().enumerate() {
        let [value] = memory
            .bytes(locate(buffers, false, i as u64))
            .ok_or(StatusCode::Invalid)?;
        *byte = value;
    }
    let header = RequestHeader::parse(&raw).map_err(|error| match error {
        HeaderError::Opcode(_) => StatusCode::Unsupported,
        _ => StatusCode::Invalid,
    })?;
    let (wrong_way, from, to) = match header.opcode {
        Opcode::MapAperture => return Err(StatusCode::Unsupported),
        Opcode::Read => (readable - 32, 0, writable),
        Opcode::Write => (writable, 32, readable),
        Opcode::Flush if header.offset == 0 => (readable - 32, 0, writable),
        Opcode::Flush => return Err(StatusCode::Invalid),
        _ => (readable - 32, 0, writable),
    };
    let is_read = header.opcode != Opcode::Write;
    let (data, limit) = if header.opcode.is_command() {
        (0, max_command(CAPACITY))
    } else {
        (header.length, u64::from(MAX_REQUEST))
    };
    if wrong_way != 0
        || to - from != data
        || header.opcode == Opcode::Flush && header.length != 0
        || header.length > limit
        || segments(buffers, is_read, from, to) > usize::from(MAX_SEGMENTS)
    {
        return Err(StatusCode::Invalid);
    }
    let end = |start: u64| u128::from(start) + u128::from(header.length);
    let second = matches!(header.opcode, Opcode::Copy | Opcode::Compare);
    if end(header.offset) > u128::from(CAPACITY)
        || second && end(header.argument) > u128::from(CAPACITY)
    {
        return Err(StatusCode::OutOfRange);
    }
    if (from..to).any(|position| !memory.has(locate(buffers, is_read, position))) {
        return Err(StatusCode::Invalid);
    }
    Ok((header, from, to))
}

/// Processes the chain at descriptor 0, byte by byte.
fn reference(memory: &mut Memory, storage: &mut [u8]) -> Result<Completed, QueueFault> {
    let buffers = memory.chain()?;
    let writable = sum(&buffers, true);
    let before_status = writable.checked_sub(16).ok_or(QueueFault::NoStatus)?;
    let places: Vec<u128> = (before_status..writable)
        .map(|position| locate(&buffers, true, position))
        .collect();
    if !places.iter().all(|addr| memory.has(*addr)) {
        return Err(QueueFault::Address);
    }

    let validated = validate(memory, &buffers);
    let (opcode, flags, code, done) = match validated {
        Err(code) => (None, 0, code, 0),
        Ok((header, from, to)) => {
            for position in from..to {
                let stored = &mut storage[(header.offset + position - from) as usize];
                if header.opcode == Opcode::Read {
                    let addr = locate(&buffers, true, position) as u64;
                    *memory.byte(addr).unwrap() = *stored;
                } else {
                    let addr = locate(&buffers, false, position) as u64;
                    *stored = *memory.byte(addr).unwrap();
                }
            }
            let result = if header.opcode.is_command() {
                execute(&header, storage)
            } else {
                header.length
            };
            (Some(header.opcode), header.flags, StatusCode::Ok, result)
        }
    };
    let status = RequestStatus { code, result: done };
    for (addr, byte) in places.iter().zip(status.to_bytes()) {
        *memory.byte(*addr as u64).unwrap() = byte;
    }
    let read = if opcode == Some(Opcode::Read) {
        done
    } else {
        0
    };
    let used = if read == before_status {
        read + 16
    } else {
        read
    };
    Ok(Completed {
        opcode,
        status,
        durable: flags == RequestHeader::FUA,
        used_len: used as u32,
    })
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0x4000..0x7000u64,
        3 => select(vec![HEADERS, HEADERS + 32, HEADERS + 64, HEADERS + 96, HEADERS + 8]),
        2 => 0x7f00..0x8100u64,
        1 => 0xbf00..0xc100u64,
        1 => 0xff00..0x10100u64,
        1 => 0x13f00..0x14100u64,
        1 => 0..0x200u64,
        1 => select(vec![SECOND_TABLE, THIRD_TABLE]),
        1 => u64::MAX - 64..,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => select(vec![16u32, 32, 48, 64]),
        4 => 0..80u32,
        1 => 0..0x3000u32,
        1 => any::<u32>(),
    ]
}

/// A descriptor at `index`. Mostly it goes on with the one behind it.
fn descriptor(index: u16) -> impl Strategy<Value = Desc> {
    let flags = prop_oneof![
        8 => select(vec![NEXT, NEXT | WRITE]),
        4 => Just(WRITE),
        1 => Just(0),
        1 => select(vec![INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT]),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![8 => Just(index + 1), 1 => 0..24u16, 1 => any::<u16>()];
    (address(), length(), flags, next).prop_map(|(addr, len, flags, next)| {
        // An indirect descriptor is of use only with a valid address.
        if flags & INDIRECT != 0 && len % 3 != 0 {
            let table = [SECOND_TABLE, THIRD_TABLE][(addr % 2) as usize];
            desc(table, len.min(640) / 16 * 16, flags, next)
        } else {
            desc(addr, len, flags, next)
        }
    })
}

/// A table whose first descriptors are often valid.
fn table(len: u16) -> impl Strategy<Value = Vec<Desc>> {
    (0..len).map(descriptor).collect::<Vec<_>>()
}

/// A table that starts like a request: header, data, status.
fn request_like() -> impl Strategy<Value = Vec<Desc>> {
    let header_at = select(vec![HEADERS, HEADERS + 32, HEADERS + 64, HEADERS + 96]);
    (
        table(8),
        header_at,
        prop::collection::vec((address(), length()), 0..4),
        any::<bool>(),
        address(),
    )
        .prop_map(|(mut table, header, data, write, status)| {
            table[0] = desc(header, 32, NEXT, 1);
            let mut i = 1;
            for (addr, len) in data {
                let flags = if write { NEXT } else { NEXT | WRITE };
                table[i] = desc(addr, len, flags, i as u16 + 1);
                i += 1;
            }
            table[i] = desc(status, 16, WRITE, 0);
            table
        })
}

fn any_table() -> impl Strategy<Value = Vec<Desc>> {
    prop_oneof![table(QUEUE_SIZE), request_like()]
}

fn header() -> impl Strategy<Value = [u8; 32]> {
    let offset = prop_oneof![
        4 => 0..CAPACITY,
        1 => CAPACITY - 100..CAPACITY + 100,
        1 => any::<u64>(),
        2 => Just(0),
    ];
    let length = prop_oneof![4 => (0..8u64).prop_map(|n| n * 16), 1 => any::<u64>(), 2 => Just(0)];
    let opcode = select(vec![
        Opcode::Read,
        Opcode::Write,
        Opcode::Flush,
        Opcode::MapAperture,
    ]);
    let plain = (opcode, offset.clone(), length, Just(0));
    let length = prop_oneof![
        4 => 0..300u64,
        1 => 0..CAPACITY,
        1 => max_command(CAPACITY) - 1..max_command(CAPACITY) + 2,
        1 => any::<u64>(),
    ];
    let command = (select(COMMANDS.to_vec()), offset.clone(), length, offset);
    let damage = prop::option::weighted(0.1, (0..32usize, any::<u8>()));
    (prop_oneof![plain, command], damage).prop_map(
        |((opcode, offset, length, argument), damage)| {
            let takes_argument = !matches!(opcode, Opcode::Discard | Opcode::WriteZeroes);
            let argument = if takes_argument { argument } else { 0 };
            let mut bytes = RequestHeader::command(opcode, offset, length, argument).to_bytes();
            if let Some((at, value)) = damage {
                bytes[at] = value;
            }
            bytes
        },
    )
}

/// Sets the length in every other header to that of the chain, so that many chains are
/// accepted.
fn fit(headers: &mut [[u8; 32]], table: &[Desc], fit: bool) {
    if !fit {
        return;
    }
    for (i, header) in headers.iter_mut().enumerate() {
        if table[0].addr == HEADERS + 32 * i as u64 && table[0].len == 32 {
            let data: u64 = table[1..]
                .iter()
                .take_while(|d| d.flags & NEXT != 0 && d.flags & INDIRECT == 0)
                .map(|d| u64::from(d.len))
                .sum();
            let opcode = match table[1].flags & WRITE {
                // A flush, or the command that is there already.
                _ if data == 0 && header[0] >= Opcode::Discard as u8 => continue,
                _ if data == 0 => Opcode::Flush,
                0 => Opcode::Write,
                _ => Opcode::Read,
            };
            header[0..2].copy_from_slice(&(opcode as u16).to_le_bytes());
            header[16..24].copy_from_slice(&data.to_le_bytes());
            header[24..32].fill(0);
        }
    }
}

proptest! {
    #![proptest_config(support::cases(1500))]

    #[test]
    fn any_chain_does_what_the_reference_says(
        table in any_table(),
        second in table(6),
        third in table(3),
        mut headers in prop::collection::vec(header(), 4),
        fitting in any::<bool>(),
        seed in any::<u8>(),
    ) {
        fit(&mut headers, &table, fitting);
        let mut guest = Guest::new();
        for (start, len) in REGIONS {
            let block: Vec<u8> = (0..=255u8).map(|i| i.wrapping_mul(seed) ^ start as u8).collect();
            let noise = block.repeat(len as usize / block.len());
            guest.put(start, &noise);
        }
        put_table(&guest.mem, SECOND_TABLE, &second);
        put_table(&guest.mem, THIRD_TABLE, &third);
        for (i, header) in headers.iter().enumerate() {
            guest.put(HEADERS + 32 * i as u64, header);
        }
        put_table(&guest.mem, TABLE, &table);

        let mut memory = Memory(support::snapshot(&guest.mem));
        let mut storage = guest.storage.contents();
        let expected = reference(&mut memory, &mut storage);

        prop_assert_eq!(guest.process(&table), expected);
        prop_assert!(guest.storage.contents() == storage, "storage differs");
        prop_assert!(support::snapshot(&guest.mem) == memory.0, "guest memory differs");
    }

    /// If the iterator of `virtio-queue` reaches the end of a chain, [`Chain`] has the same
    /// buffers.
    #[test]
    fn chains_agree_with_virtio_queue(
        table in any_table(),
        second in table(6),
        third in table(3),
    ) {
        let guest = Guest::new();
        let ring = MockSplitQueue::create(&guest.mem, GuestAddress(TABLE), QUEUE_SIZE);
        put_table(&guest.mem, SECOND_TABLE, &second);
        put_table(&guest.mem, THIRD_TABLE, &third);
        put_table(&guest.mem, TABLE, &table);
        guest.mem.write_obj(1u16, GuestAddress(ring.avail_addr().0 + 2)).unwrap();

        let mut queue: Queue = ring.create_queue().unwrap();
        let theirs: Vec<Descriptor> = queue.iter(&guest.mem).unwrap().next().unwrap().collect();
        let mut chain = Chain::with_limit(MAX_BUFFERS);
        let ours = chain.read(&guest.mem, head(0));

        let complete = theirs.last().is_some_and(|last| !last.has_next());
        match ours {
            Ok(()) => {
                let total: u64 = theirs.iter().map(|d| u64::from(d.len())).sum();
                // The iterator ends at 4 GiB, and here the request is refused instead.
                let ours_total: u64 = chain.buffers().iter().map(|b| u64::from(b.len)).sum();
                if ours_total <= u64::from(u32::MAX) {
                    prop_assert!(complete);
                    prop_assert_eq!(total, ours_total);
                    prop_assert_eq!(theirs.len(), chain.buffers().len());
                    for (their, our) in theirs.iter().zip(chain.buffers()) {
                        prop_assert_eq!(their.addr(), our.addr);
                        prop_assert_eq!(their.len(), our.len);
                        prop_assert_eq!(their.is_write_only(), our.writable);
                    }
                }
            }
            // The iterator accepts a chain that continues behind an indirect table, and a longer
            // one.
            Err(_) if complete => {
                let both = INDIRECT | NEXT;
                let lenient = [&table, &second, &third]
                    .iter()
                    .any(|table| table.iter().any(|d| d.flags & both == both));
                prop_assert!(lenient || theirs.len() > MAX_BUFFERS);
            }
            Err(_) => {}
        }
    }
}
