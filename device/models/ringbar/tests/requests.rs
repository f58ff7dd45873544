// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests, right and wrong, one at a time.

mod support;

use std::sync::atomic::Ordering;

use ringbar_model::Completed;
use ringbar_spec::{Opcode, QueueFault, RequestHeader, RequestStatus, StatusCode};
use ringbar_storage::{Storage, with_causes};
use support::{
    CAPACITY, Desc, Guest, INDIRECT, MAX_REQUEST, NEXT, QUEUE_SIZE, TestStorage, WRITE, desc, head,
    put_table,
};

const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const SECOND_TABLE: u64 = 0x4000;

fn header(opcode: Opcode, offset: u64, length: u64) -> RequestHeader {
    RequestHeader::command(opcode, offset, length, 0)
}

/// Header, one data buffer, status.
fn plain(header: &RequestHeader) -> Vec<Desc> {
    let len = header.length as u32;
    match header.opcode {
        Opcode::Read => vec![
            desc(HEADER, 32, NEXT, 1),
            desc(DATA, len, NEXT | WRITE, 2),
            desc(STATUS, 16, WRITE, 0),
        ],
        Opcode::Write => vec![
            desc(HEADER, 32, NEXT, 1),
            desc(DATA, len, NEXT, 2),
            desc(STATUS, 16, WRITE, 0),
        ],
        _ => {
            vec![desc(HEADER, 32, NEXT, 1), desc(STATUS, 16, WRITE, 0)]
        }
    }
}

fn guest(header: &RequestHeader) -> Guest {
    let guest = Guest::new();
    guest.put(HEADER, &header.to_bytes());
    guest.put(STATUS, &RequestStatus::UNWRITTEN);
    guest
}

#[track_caller]
fn assert_completed(
    guest: &Guest,
    completed: &Completed,
    code: StatusCode,
    result: u64,
    used_len: u32,
) {
    let status = RequestStatus { code, result };
    assert_eq!(completed.status, status);
    assert_eq!(completed.used_len, used_len);
    assert_eq!(guest.status(STATUS), Some(status));
}

#[track_caller]
fn assert_refused(header: &RequestHeader, table: &[Desc], code: StatusCode) {
    let mut guest = guest(header);
    let before = guest.storage.contents();
    let completed = guest.process(table).unwrap();
    assert_eq!(completed.status, RequestStatus { code, result: 0 });
    assert_eq!(guest.status(STATUS), Some(completed.status));
    assert_eq!(guest.storage.contents(), before);
}

#[track_caller]
fn assert_fault(header: &RequestHeader, table: &[Desc], fault: QueueFault) {
    let mut guest = guest(header);
    put_table(&guest.mem, support::TABLE, table);
    let before = support::snapshot(&guest.mem);
    assert_eq!(guest.process(table).unwrap_err(), fault);
    assert_eq!(support::snapshot(&guest.mem), before);
}

#[test]
fn read_brings_the_bytes() {
    let header = header(Opcode::Read, 4097, 1234);
    let mut guest = guest(&header);
    let completed = guest.process(&plain(&header)).unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 1234, 1250);
    assert_eq!(
        guest.get(DATA, 1234),
        guest.storage.contents()[4097..4097 + 1234]
    );
}

#[test]
fn write_stores_the_bytes_and_no_others() {
    let header = header(Opcode::Write, 9999, 777);
    let mut guest = guest(&header);
    let data: Vec<u8> = (0..777).map(|i| (i * 31) as u8).collect();
    guest.put(DATA, &data);
    let mut expected = guest.storage.contents();
    expected[9999..9999 + 777].copy_from_slice(&data);
    let completed = guest.process(&plain(&header)).unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 777, 16);
    assert_eq!(guest.storage.contents(), expected);
    assert_eq!(guest.storage.flushes.load(Ordering::Relaxed), 0);
}

#[test]
fn forced_unit_access_flushes() {
    let header = RequestHeader {
        flags: RequestHeader::FUA,
        ..header(Opcode::Write, 0, 8)
    };
    let mut guest = guest(&header);
    let completed = guest.process(&plain(&header)).unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 8, 16);
    assert_eq!(guest.storage.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn ho2_forced_unit_access_flushes_after_the_last_segment() {
    let write = RequestHeader {
        flags: RequestHeader::FUA,
        ..header(Opcode::Write, 1000, 300)
    };
    let segments = [
        desc(HEADER, 32, NEXT, 1),
        desc(DATA, 100, NEXT, 2),
        desc(DATA + 500, 50, NEXT, 3),
        // Across two regions of memory.
        desc(0x8000 - 75, 150, NEXT, 4),
        desc(STATUS, 16, WRITE, 0),
    ];
    let mut guest = guest(&write);
    let completed = guest.process(&segments).unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 300, 16);
    assert!(completed.durable);
    assert_eq!(guest.storage.unflushed(), []);

    // Not what others have written, and not without the flag.
    let plain_write = header(Opcode::Write, 2000, 300);
    guest.put(HEADER, &plain_write.to_bytes());
    assert!(!guest.process(&segments).unwrap().durable);
    assert_eq!(guest.storage.unflushed().len(), 4);
    guest.put(HEADER, &write.to_bytes());
    guest.process(&segments).unwrap();
    assert_eq!(guest.storage.unflushed().len(), 4);
    // But a flush is for all of it.
    let flush = header(Opcode::Flush, 0, 0);
    guest.put(HEADER, &flush.to_bytes());
    guest.process(&plain(&flush)).unwrap();
    assert_eq!(guest.storage.unflushed(), []);
}

#[test]
fn ho15_the_host_learns_why_the_storage_failed() {
    let failing = TestStorage::failing(Some(250), 5);
    let mut guest = Guest::with_storage(failing);
    let reason = |guest: &mut Guest| guest.io.take_failure().map(|error| with_causes(&error));
    let expected = "the storage failed: Input/output error (os error 5)";
    for opcode in [Opcode::Read, Opcode::Write, Opcode::Fill, Opcode::Crc32c] {
        let header = header(opcode, 200, 64);
        guest.put(HEADER, &header.to_bytes());
        let completed = guest.process(&plain(&header)).unwrap();
        assert_eq!(completed.status.code, StatusCode::IoError);
        assert_eq!(reason(&mut guest).as_deref(), Some(expected));
        // Once.
        assert_eq!(reason(&mut guest), None);
    }
    // Only the last request has a failure, and an error of the guest has none.
    let failing = header(Opcode::Read, 200, 64);
    for (next, code) in [
        (header(Opcode::Read, 0, 64), StatusCode::Ok),
        (header(Opcode::Read, CAPACITY, 64), StatusCode::OutOfRange),
    ] {
        for (header, code) in [(failing, StatusCode::IoError), (next, code)] {
            guest.put(HEADER, &header.to_bytes());
            let completed = guest.process(&plain(&header)).unwrap();
            assert_eq!(completed.status.code, code);
        }
        assert_eq!(reason(&mut guest), None);
    }
}

#[test]
fn flush_flushes() {
    let header = header(Opcode::Flush, 0, 0);
    let mut guest = guest(&header);
    let completed = guest.process(&plain(&header)).unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 0, 16);
    assert_eq!(guest.storage.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn empty_range_at_the_end_is_in_range() {
    for opcode in [Opcode::Read, Opcode::Write] {
        let header = header(opcode, CAPACITY, 0);
        let mut guest = guest(&header);
        let completed = guest.process(&plain(&header)).unwrap();
        assert_completed(&guest, &completed, StatusCode::Ok, 0, 16);
    }
}

#[test]
fn one_descriptor_each_way_is_enough() {
    let header = header(Opcode::Write, 5, 100);
    let mut guest = guest(&header);
    let data = [0xa5; 100];
    guest.put(HEADER + 32, &data);
    let completed = guest
        .process(&[desc(HEADER, 132, NEXT, 1), desc(STATUS, 16, WRITE, 0)])
        .unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 100, 16);
    assert_eq!(guest.storage.contents()[5..105], data);
}

#[test]
fn data_across_two_regions_is_one_segment() {
    let header = header(Opcode::Read, 0, 0x100);
    let mut guest = guest(&header);
    let completed = guest
        .process(&[
            desc(HEADER, 32, NEXT, 1),
            desc(0x7f80, 0x100, NEXT | WRITE, 2),
            desc(STATUS, 16, WRITE, 0),
        ])
        .unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 0x100, 0x110);
    assert_eq!(guest.get(0x7f80, 0x100), guest.storage.contents()[..0x100]);
}

#[test]
fn indirect_table_is_followed_and_its_write_flag_ignored() {
    let header = header(Opcode::Read, 3, 64);
    let mut guest = guest(&header);
    put_table(&guest.mem, SECOND_TABLE, &plain(&header));
    let completed = guest
        .process(&[desc(SECOND_TABLE, 3 * 16, INDIRECT | WRITE, 9)])
        .unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 64, 80);
}

#[test]
fn indirect_table_may_follow_direct_descriptors() {
    let header = header(Opcode::Read, 3, 64);
    let mut guest = guest(&header);
    put_table(
        &guest.mem,
        SECOND_TABLE,
        &[desc(DATA, 64, NEXT | WRITE, 1), desc(STATUS, 16, WRITE, 0)],
    );
    let completed = guest
        .process(&[
            desc(HEADER, 32, NEXT, 5),
            desc(0, 0, 0, 0),
            desc(0, 0, 0, 0),
            desc(0, 0, 0, 0),
            desc(0, 0, 0, 0),
            desc(SECOND_TABLE, 2 * 16, INDIRECT, 0),
        ])
        .unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 64, 80);
}

#[test]
fn storage_errors_reach_the_driver() {
    for (errno, code) in [(5, StatusCode::IoError), (28, StatusCode::NoSpace)] {
        let header = header(Opcode::Read, 100, 300);
        let mut guest = Guest::with_storage(TestStorage::failing(Some(250), errno));
        guest.put(HEADER, &header.to_bytes());
        let completed = guest
            .process(&[
                desc(HEADER, 32, NEXT, 1),
                desc(DATA, 100, NEXT | WRITE, 2),
                desc(DATA + 0x200, 200, NEXT | WRITE, 3),
                desc(STATUS, 16, WRITE, 0),
            ])
            .unwrap();
        // The first segment was written. The status is behind a gap, so the length excludes it.
        assert_completed(&guest, &completed, code, 100, 100);
        assert_eq!(guest.get(DATA, 100), guest.storage.contents()[100..200]);
    }
}

#[test]
fn failing_flush_is_reported() {
    let header = header(Opcode::Flush, 0, 0);
    let mut guest = Guest::with_storage(TestStorage::failing(None, 5));
    guest.put(HEADER, &header.to_bytes());
    let completed = guest.process(&plain(&header)).unwrap();
    assert_completed(&guest, &completed, StatusCode::IoError, 0, 16);
}

#[test]
fn ranges_outside_the_device_are_refused() {
    for (offset, length) in [
        (CAPACITY, 1),
        (CAPACITY - 1, 2),
        (CAPACITY + 1, 0),
        (u64::MAX, 1),
        (u64::MAX, 0),
        (u64::MAX - 3, 4),
    ] {
        for opcode in [Opcode::Read, Opcode::Write] {
            let header = header(opcode, offset, length);
            assert_refused(&header, &plain(&header), StatusCode::OutOfRange);
        }
    }
}

#[test]
fn ranges_are_checked_against_the_current_capacity() {
    let header = header(Opcode::Read, CAPACITY - 64, 64);
    let mut guest = Guest::with_storage(TestStorage::new());
    for (capacity, code, result) in [
        (CAPACITY, StatusCode::Ok, 64),
        (CAPACITY - 1, StatusCode::OutOfRange, 0),
        (CAPACITY, StatusCode::Ok, 64),
    ] {
        guest.storage.resize(capacity).unwrap();
        guest.put(HEADER, &header.to_bytes());
        let completed = guest.process(&plain(&header)).unwrap();
        assert_eq!(
            (completed.status.code, completed.status.result),
            (code, result)
        );
    }
}

#[test]
fn contradictions_are_refused() {
    let read = header(Opcode::Read, 0, 64);
    let write = header(Opcode::Write, 0, 64);
    let flush = header(Opcode::Flush, 0, 0);
    let readable = [
        desc(HEADER, 32, NEXT, 1),
        desc(DATA, 64, NEXT, 2),
        desc(STATUS, 16, WRITE, 0),
    ];
    let writable = [
        desc(HEADER, 32, NEXT, 1),
        desc(DATA, 64, NEXT | WRITE, 2),
        desc(STATUS, 16, WRITE, 0),
    ];
    // Data in the wrong direction, or where there is none.
    assert_refused(&read, &readable, StatusCode::Invalid);
    assert_refused(&write, &writable, StatusCode::Invalid);
    assert_refused(&flush, &readable, StatusCode::Invalid);
    assert_refused(&flush, &writable, StatusCode::Invalid);
    // Length and data differ.
    assert_refused(&header(Opcode::Read, 0, 63), &writable, StatusCode::Invalid);
    assert_refused(
        &header(Opcode::Write, 0, 65),
        &readable,
        StatusCode::Invalid,
    );
    // Flush of a range.
    assert_refused(
        &header(Opcode::Flush, 1, 0),
        &plain(&flush),
        StatusCode::Invalid,
    );
    // Readable after writable.
    assert_refused(
        &write,
        &[
            desc(HEADER, 32, NEXT, 1),
            desc(STATUS, 16, NEXT | WRITE, 2),
            desc(DATA, 64, 0, 0),
        ],
        StatusCode::Invalid,
    );
    // Less than a header.
    assert_refused(
        &flush,
        &[desc(HEADER, 31, NEXT, 1), desc(STATUS, 16, WRITE, 0)],
        StatusCode::Invalid,
    );
}

#[test]
fn limits_are_enforced() {
    let large = header(Opcode::Read, 0, u64::from(MAX_REQUEST) + 1);
    assert_refused(&large, &plain(&large), StatusCode::Invalid);

    let nine = header(Opcode::Write, 0, 9);
    let mut table: Vec<Desc> = (0..9).map(|i| desc(DATA, 1, NEXT, i + 2)).collect();
    table.insert(0, desc(HEADER, 32, NEXT, 1));
    table.push(desc(STATUS, 16, WRITE, 0));
    assert_refused(&nine, &table, StatusCode::Invalid);

    // A split header does not count against the limit.
    let eight = header(Opcode::Write, 0, 8);
    let mut table: Vec<Desc> = (0..8).map(|i| desc(DATA, 1, NEXT, i + 3)).collect();
    table.insert(0, desc(HEADER, 20, NEXT, 1));
    table.insert(1, desc(HEADER + 20, 12, NEXT, 2));
    table.push(desc(STATUS, 16, WRITE, 0));
    let mut guest = guest(&eight);
    let completed = guest.process(&table).unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 8, 16);
}

#[test]
fn bad_headers_are_refused() {
    let flush = header(Opcode::Flush, 0, 0);
    for (at, value, code) in [
        (0, 0, StatusCode::Unsupported),
        (0, 10, StatusCode::Unsupported),
        (1, 0x80, StatusCode::Unsupported),
        (2, 1, StatusCode::Invalid),
        (3, 1, StatusCode::Invalid),
        (4, 1, StatusCode::Invalid),
        (31, 1, StatusCode::Invalid),
    ] {
        let mut guest = guest(&flush);
        guest.put(HEADER + at, &[value]);
        let completed = guest.process(&plain(&flush)).unwrap();
        assert_completed(&guest, &completed, code, 0, 16);
        assert_eq!(guest.storage.flushes.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn queues_refuse_opcodes_of_other_roles() {
    let map = header(Opcode::MapAperture, 0, 0);
    assert_refused(&map, &plain(&map), StatusCode::Unsupported);

    let flush = header(Opcode::Flush, 0, 0);
    let mut guest = guest(&flush);
    put_table(&guest.mem, support::TABLE, &plain(&flush));
    let completed = guest
        .control
        .process(&guest.mem, head(0), || panic!("not asked to map"))
        .unwrap()
        .unwrap();
    assert_completed(&guest, &completed, StatusCode::Unsupported, 0, 16);
}

#[test]
fn map_aperture_is_executed_by_the_caller() {
    let map = header(Opcode::MapAperture, 0, 0);
    let mut guest = guest(&map);
    put_table(&guest.mem, support::TABLE, &plain(&map));
    let before = support::snapshot(&guest.mem);
    assert_eq!(
        guest.control.process(&guest.mem, head(0), || None),
        Ok(None)
    );
    assert_eq!(support::snapshot(&guest.mem), before);

    let answer = RequestStatus {
        code: StatusCode::Ok,
        result: CAPACITY,
    };
    let completed = guest
        .control
        .process(&guest.mem, head(0), || Some(answer))
        .unwrap()
        .unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, CAPACITY, 16);
}

#[test]
fn data_outside_guest_memory_is_refused() {
    let read = header(Opcode::Read, 0, 64);
    let write = header(Opcode::Write, 0, 64);
    // In the hole, over its edges, at the top, around it.
    for addr in [0xd000, 0xbff0, 0xfff0, 0x13fff, u64::MAX - 10, 1 << 63] {
        for header in [&read, &write] {
            let mut table = plain(header);
            table[1].addr = addr;
            assert_refused(header, &table, StatusCode::Invalid);
        }
    }
}

#[test]
fn header_outside_guest_memory_is_refused() {
    let flush = header(Opcode::Flush, 0, 0);
    for addr in [0xd000, 0xbff0, u64::MAX - 3] {
        let mut table = plain(&flush);
        table[0].addr = addr;
        assert_refused(&flush, &table, StatusCode::Invalid);
    }
}

#[test]
fn empty_descriptors_are_ignored() {
    let header = header(Opcode::Write, 0, 4);
    let mut guest = guest(&header);
    let completed = guest
        .process(&[
            desc(0xdead_0000, 0, NEXT, 1),
            desc(HEADER, 32, NEXT, 2),
            desc(0xdead_0000, 0, NEXT, 3),
            desc(DATA, 4, NEXT, 4),
            desc(u64::MAX, 0, NEXT | WRITE, 5),
            desc(STATUS, 16, NEXT | WRITE, 6),
            desc(0xdead_0000, 0, WRITE, 0),
        ])
        .unwrap();
    assert_completed(&guest, &completed, StatusCode::Ok, 4, 16);
}

#[test]
fn chains_without_a_status_break_the_queue() {
    let flush = header(Opcode::Flush, 0, 0);
    for table in [
        &[desc(HEADER, 32, 0, 0)][..],
        &[desc(HEADER, 32, NEXT, 1), desc(STATUS, 15, WRITE, 0)],
        &[desc(HEADER, 0, WRITE, 0)],
    ] {
        assert_fault(&flush, table, QueueFault::NoStatus);
    }
}

#[test]
fn status_outside_guest_memory_breaks_the_queue() {
    let flush = header(Opcode::Flush, 0, 0);
    for addr in [0xd000, 0xbff1, 0xfff8, 0x13ff1, u64::MAX, u64::MAX - 15] {
        let table = [desc(HEADER, 32, NEXT, 1), desc(addr, 16, WRITE, 0)];
        assert_fault(&flush, &table, QueueFault::Address);
    }
}

#[test]
fn broken_chains_break_the_queue() {
    let flush = header(Opcode::Flush, 0, 0);
    for table in [
        // Loops: to itself, in a circle, behind the status.
        &[desc(HEADER, 32, NEXT, 0)][..],
        &[desc(HEADER, 32, NEXT, 1), desc(STATUS, 16, NEXT | WRITE, 0)],
        &[desc(HEADER, 32, NEXT, 1), desc(STATUS, 16, NEXT | WRITE, 1)],
        // Out of the table.
        &[desc(HEADER, 32, NEXT, QUEUE_SIZE)],
        &[desc(HEADER, 32, NEXT, u16::MAX)],
        // Indirect tables of impossible sizes.
        &[desc(SECOND_TABLE, 0, INDIRECT, 0)],
        &[desc(SECOND_TABLE, 15, INDIRECT, 0)],
        &[desc(SECOND_TABLE, 17, INDIRECT, 0)],
        // Something after an indirect table.
        &[
            desc(SECOND_TABLE, 32, INDIRECT | NEXT, 1),
            desc(STATUS, 16, WRITE, 0),
        ],
    ] {
        assert_fault(&flush, table, QueueFault::Chain);
    }
}

#[test]
fn indirect_table_in_an_indirect_table_breaks_the_queue() {
    let flush = header(Opcode::Flush, 0, 0);
    let mut guest = guest(&flush);
    put_table(
        &guest.mem,
        SECOND_TABLE,
        &[desc(SECOND_TABLE, 16, INDIRECT, 0)],
    );
    assert_eq!(
        guest.process(&[desc(SECOND_TABLE, 16, INDIRECT, 0)]),
        Err(QueueFault::Chain)
    );
}

#[test]
fn indirect_chain_beyond_the_limit_breaks_the_queue() {
    // 200 one-byte buffers are more than any request within the limits has.
    let flush = header(Opcode::Flush, 0, 0);
    let mut guest = guest(&flush);
    let mut table: Vec<Desc> = (0..200).map(|i| desc(HEADER, 1, NEXT, i + 1)).collect();
    table.push(desc(STATUS, 16, WRITE, 0));
    put_table(&guest.mem, SECOND_TABLE, &table);
    assert_eq!(
        guest.process(&[desc(SECOND_TABLE, 201 * 16, INDIRECT, 0)]),
        Err(QueueFault::Chain)
    );
}

#[test]
fn tables_outside_guest_memory_break_the_queue() {
    let flush = header(Opcode::Flush, 0, 0);
    for addr in [0xd000, 0xbff8, u64::MAX - 15, u64::MAX] {
        assert_fault(&flush, &[desc(addr, 32, INDIRECT, 0)], QueueFault::Address);
    }
}

#[test]
fn head_outside_the_ring_breaks_the_queue() {
    let mut guest = Guest::new();
    for index in [QUEUE_SIZE, u16::MAX] {
        assert_eq!(
            guest.io.process(&guest.mem, head(index), || None),
            Err(QueueFault::Ring)
        );
    }
}
