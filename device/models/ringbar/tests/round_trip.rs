// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A request reads what another has written, however their buffers are split.

mod support;

use proptest::prelude::*;
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use support::{CAPACITY, Desc, Guest, INDIRECT, MAX_REQUEST, NEXT, WRITE, desc, put_table};

const SECOND_TABLE: u64 = 0x400;
const HEADER: u64 = 0x1000;
const STATUS: u64 = 0x1800;
/// Three areas for data, the second across two regions.
const AREAS: [u64; 3] = [0x2001, 0x6ffd, 0x10003];
const AREA: usize = 0x3000;

/// Splits `len` bytes at the given fractions.
fn split_at_fractions(len: usize, fractions: &[f64]) -> Vec<usize> {
    let mut at: Vec<usize> = fractions
        .iter()
        .map(|f| (f * len as f64) as usize)
        .collect();
    at.sort_unstable();
    at.insert(0, 0);
    at.push(len);
    at.windows(2)
        .map(|two| two[1] - two[0])
        .filter(|n| *n > 0)
        .collect()
}

/// One request: how header, data and status are split, and where the data is.
#[derive(Clone, Debug)]
struct Shape {
    header: Vec<f64>,
    data: Vec<f64>,
    status: Vec<f64>,
    area: usize,
    gap: usize,
    joined: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let fractions = |n| prop::collection::vec(0.0..1.0f64, 0..n);
    (
        fractions(6),
        fractions(7),
        fractions(5),
        0..3usize,
        0..64usize,
        any::<bool>(),
    )
        .prop_map(|(header, data, status, area, gap, joined)| Shape {
            header,
            data,
            status,
            area,
            gap,
            joined,
        })
}

/// Lays a request out; returns its table and the segments of the data.
fn lay_out(guest: &Guest, header: &RequestHeader, shape: &Shape) -> (Vec<Desc>, Vec<(u64, usize)>) {
    let writable = header.opcode == Opcode::Read;
    let mut readable_part = Vec::new();
    let mut writable_part = Vec::new();
    let mut at = HEADER;
    guest.put(HEADER, &header.to_bytes());
    guest.put(STATUS, &RequestStatus::UNWRITTEN);
    for len in split_at_fractions(RequestHeader::SIZE, &shape.header) {
        readable_part.push((at, len));
        at += len as u64;
    }
    let mut data = Vec::new();
    let mut at = AREAS[shape.area];
    for len in split_at_fractions(header.length as usize, &shape.data) {
        data.push((at, len));
        at += (len + if shape.joined { 0 } else { shape.gap }) as u64;
    }
    if writable {
        writable_part.extend(&data);
    } else {
        readable_part.extend(&data);
    }
    let mut at = STATUS;
    for len in split_at_fractions(RequestStatus::SIZE, &shape.status) {
        writable_part.push((at, len));
        at += len as u64;
    }
    let flagged = readable_part
        .iter()
        .map(|segment| (segment, NEXT))
        .chain(writable_part.iter().map(|segment| (segment, NEXT | WRITE)));
    let mut table: Vec<Desc> = flagged
        .enumerate()
        .map(|(i, ((addr, len), flags))| desc(*addr, *len as u32, flags, i as u16 + 1))
        .collect();
    table.last_mut().unwrap().flags &= !NEXT;
    put_table(&guest.mem, SECOND_TABLE, &table);
    (
        vec![desc(SECOND_TABLE, 16 * table.len() as u32, INDIRECT, 0)],
        data,
    )
}

proptest! {
    #![proptest_config(support::cases(1000))]

    #[test]
    fn written_bytes_come_back(
        offset in 0..CAPACITY,
        length in prop_oneof![0..300usize, 0..MAX_REQUEST as usize],
        to in shape(),
        from in shape(),
        seed in any::<u8>(),
    ) {
        let length = length.min((CAPACITY - offset) as usize);
        let mut guest = Guest::new();
        let mut expected = guest.storage.contents();
        let data: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_mul(3) ^ seed ^ (i >> 7) as u8).collect();
        expected[offset as usize..][..length].copy_from_slice(&data);

        let header = RequestHeader::command(Opcode::Write, offset, length as u64, 0);
        let (table, segments) = lay_out(&guest, &header, &to);
        let mut rest = &data[..];
        for (addr, len) in segments {
            let (segment, after) = rest.split_at(len);
            guest.put(addr, segment);
            rest = after;
        }
        let done = RequestStatus { code: StatusCode::Ok, result: length as u64 };
        let completed = guest.process(&table).unwrap();
        prop_assert_eq!(completed.status, done);
        prop_assert_eq!(completed.used_len, 16);
        prop_assert_eq!(guest.status(STATUS), Some(done));
        prop_assert!(guest.storage.contents() == expected);

        for area in AREAS {
            guest.put(area, &[0xee; AREA]);
        }
        let header = RequestHeader { opcode: Opcode::Read, ..header };
        let (table, segments) = lay_out(&guest, &header, &from);
        let completed = guest.process(&table).unwrap();
        prop_assert_eq!(completed.status, done);
        prop_assert_eq!(completed.used_len as usize, length + 16);
        let read: Vec<u8> = segments.iter().flat_map(|(addr, len)| guest.get(*addr, *len)).collect();
        prop_assert!(read == data);
        prop_assert!(guest.storage.contents() == expected);
    }
}
