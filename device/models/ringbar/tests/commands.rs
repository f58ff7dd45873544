// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands, one at a time and in sequence.

mod commands_reference;
mod support;

use std::sync::atomic::Ordering;

use commands_reference::{COMMANDS, crc32c, execute};
use proptest::prelude::*;
use proptest::sample::select;
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use support::{
    CAPACITY, Desc, Guest, NEXT, TestStorage, WRITE, desc, max_command, pattern, put_table,
};

const HEADER: u64 = 0x1000;
const STATUS: u64 = 0x3000;

/// Large enough for commands of several chunks (of 64 KiB).
const LARGE: u64 = 300_000;
const PIECE: u64 = 65536;

fn large() -> Guest {
    Guest::with_storage(TestStorage::with_contents(&pattern(LARGE)))
}

const TABLE: [Desc; 2] = [desc(HEADER, 32, NEXT, 1), desc(STATUS, 16, WRITE, 0)];

/// Processes a command; checks the parts that each status must have.
#[track_caller]
fn process(guest: &mut Guest, header: &RequestHeader) -> RequestStatus {
    guest.put(HEADER, &header.to_bytes());
    guest.put(STATUS, &RequestStatus::UNWRITTEN);
    let completed = guest.process(&TABLE).unwrap();
    assert_eq!(completed.used_len, 16);
    assert_eq!(guest.status(STATUS), Some(completed.status));
    match completed.status.code {
        StatusCode::Unsupported | StatusCode::Invalid | StatusCode::OutOfRange => {
            assert_eq!(completed.opcode, None);
        }
        _ => assert_eq!(completed.opcode, Some(header.opcode)),
    }
    completed.status
}

#[track_caller]
fn command(guest: &mut Guest, opcode: Opcode, offset: u64, length: u64, argument: u64) -> u64 {
    let header = RequestHeader::command(opcode, offset, length, argument);
    let status = process(guest, &header);
    assert_eq!(status.code, StatusCode::Ok, "{header:?}");
    status.result
}

#[track_caller]
fn assert_refused(guest: &mut Guest, header: &RequestHeader, code: StatusCode) {
    let before = guest.storage.contents();
    let refusal = RequestStatus { code, result: 0 };
    assert_eq!(process(guest, header), refusal, "{header:?}");
    assert!(guest.storage.contents() == before, "{header:?}");
}

#[test]
fn discarded_and_zeroed_ranges_read_as_0() {
    for (opcode, discards) in [(Opcode::Discard, 1), (Opcode::WriteZeroes, 0)] {
        let mut guest = Guest::new();
        let mut expected = guest.storage.contents();
        assert_eq!(command(&mut guest, opcode, 4000, 5001, 0), 5001);
        expected[4000..9001].fill(0);
        assert!(guest.storage.contents() == expected);
        assert_eq!(guest.storage.discards.load(Ordering::Relaxed), discards);
        assert_eq!(guest.storage.flushes.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn copies_that_overlap_keep_the_source_whole() {
    // Ranges that are apart, adjacent, overlap by one byte or by about a chunk, or are equal.
    for distance in [0, 1, 7, 4096, PIECE - 1, PIECE, PIECE + 1, 100_000, 150_000] {
        for length in [1, 8, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 150_000] {
            for (source, target) in [(0, distance), (distance, 0)] {
                let mut guest = large();
                let mut expected = guest.storage.contents();
                expected.copy_within(source as usize..(source + length) as usize, target as usize);
                let result = command(&mut guest, Opcode::Copy, target, length, source);
                assert_eq!(result, length);
                assert!(
                    guest.storage.contents() == expected,
                    "{length} bytes from {source} to {target}"
                );
            }
        }
    }
}

#[test]
fn pattern_starts_with_the_range() {
    let mut guest = large();
    let word = 0x8877_6655_4433_2211;
    command(&mut guest, Opcode::Fill, 5, 19, word);
    let contents = guest.storage.contents();
    assert_eq!(
        contents[5..24],
        [
            0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
            0x77, 0x88, 0x11, 0x22, 0x33
        ]
    );
    assert_eq!(contents[..5], pattern(5));
    assert_eq!(contents[24..30], pattern(30)[24..]);

    // The phase does not change from one chunk to the next.
    command(&mut guest, Opcode::Fill, 3, 2 * PIECE + 5, word);
    let contents = guest.storage.contents();
    let filled = &contents[3..][..2 * PIECE as usize + 5];
    assert!(
        filled
            .chunks(8)
            .all(|chunk| chunk == &word.to_le_bytes()[..chunk.len()])
    );
}

#[test]
fn comparison_finds_the_first_difference() {
    for at in [0, 1, 4095, PIECE - 1, PIECE, PIECE + 77, 99_999] {
        let block = pattern(100_000);
        let mut contents = block.repeat(2);
        contents[100_000 + at as usize] ^= 0x10;
        // A second difference, which has no effect.
        contents[199_999] ^= 0x20;
        let before = contents.clone();
        let mut guest = Guest::with_storage(TestStorage::with_contents(&contents));
        for (one, other) in [(0, 100_000), (100_000, 0)] {
            let mut equal = |length| command(&mut guest, Opcode::Compare, one, length, other);
            assert_eq!(equal(100_000), at);
            assert_eq!(equal(at), at);
            assert_eq!(equal(at + 1), at);
        }
        assert!(guest.storage.contents() == before);
    }
    let mut guest = large();
    assert_eq!(command(&mut guest, Opcode::Compare, 9, 200_000, 9), 200_000);
}

#[test]
fn checksums_are_those_of_the_standard() {
    // RFC 3720, B.4, and the usual check value.
    let ascending: Vec<u8> = (0..32).collect();
    let descending: Vec<u8> = (0..32).rev().collect();
    for (data, crc) in [
        (&b"123456789"[..], 0xe306_9283),
        (&[0; 32], 0x8a91_36aa),
        (&[0xff; 32], 0x62a8_ab43),
        (&ascending, 0x46dd_794e),
        (&descending, 0x113f_db5c),
        (&[], 0),
    ] {
        assert_eq!(crc32c(0, data), crc);
        let mut contents = vec![0xaa; 5000];
        contents[77..][..data.len()].copy_from_slice(data);
        let mut guest = Guest::with_storage(TestStorage::with_contents(&contents));
        let length = data.len() as u64;
        let result = command(&mut guest, Opcode::Crc32c, 77, length, 0);
        assert_eq!(result, u64::from(crc), "{data:?}");
    }
}

#[test]
fn checksum_continues_from_a_previous_one() {
    let mut guest = large();
    let whole = command(&mut guest, Opcode::Crc32c, 1, 200_000, 0);
    assert_eq!(
        whole,
        u64::from(crc32c(0, &guest.storage.contents()[1..200_001]))
    );
    for first in [0, 1, 63, PIECE, 199_999, 200_000] {
        let before = command(&mut guest, Opcode::Crc32c, 1, first, 0);
        let after = command(
            &mut guest,
            Opcode::Crc32c,
            1 + first,
            200_000 - first,
            before,
        );
        assert_eq!(after, whole);
    }
}

#[test]
fn commands_of_length_0_succeed() {
    for opcode in COMMANDS {
        for offset in [0, 7, CAPACITY] {
            let mut guest = Guest::new();
            let before = guest.storage.contents();
            let argument = match opcode {
                Opcode::Discard | Opcode::WriteZeroes => 0,
                _ => CAPACITY,
            };
            let result = command(&mut guest, opcode, offset, 0, argument);
            let nothing = if opcode == Opcode::Crc32c {
                argument
            } else {
                0
            };
            assert_eq!(result, nothing, "{opcode:?}");
            assert!(guest.storage.contents() == before);
        }
    }
}

#[test]
fn ranges_may_reach_the_end_but_not_beyond() {
    for opcode in COMMANDS {
        let mut guest = Guest::new();
        let last = RequestHeader::command(opcode, CAPACITY - 10, 10, 0);
        assert_eq!(process(&mut guest, &last).code, StatusCode::Ok);
        for (offset, length) in [
            (CAPACITY, 1),
            (CAPACITY - 9, 10),
            (CAPACITY + 1, 0),
            (u64::MAX, 0),
            (u64::MAX, 1),
            (u64::MAX - 9, 10),
            (1 << 63, 10),
        ] {
            let outside = RequestHeader::command(opcode, offset, length, 0);
            assert_refused(&mut guest, &outside, StatusCode::OutOfRange);
            if matches!(opcode, Opcode::Copy | Opcode::Compare) {
                let outside = RequestHeader::command(opcode, 0, length, offset);
                assert_refused(&mut guest, &outside, StatusCode::OutOfRange);
                let last = RequestHeader::command(opcode, 0, 10, CAPACITY - 10);
                assert_eq!(process(&mut guest, &last).code, StatusCode::Ok);
            }
        }
    }
}

#[test]
fn length_is_limited() {
    for opcode in COMMANDS {
        let mut guest = Guest::new();
        let longest = max_command(CAPACITY);
        let header = RequestHeader::command(opcode, 0, longest, 0);
        assert_eq!(process(&mut guest, &header).code, StatusCode::Ok);
        for length in [longest + 1, u64::MAX] {
            let header = RequestHeader::command(opcode, 0, length, 0);
            assert_refused(&mut guest, &header, StatusCode::Invalid);
        }
    }
}

#[test]
fn forced_unit_access_is_for_those_that_write() {
    for opcode in COMMANDS {
        let header = RequestHeader {
            flags: RequestHeader::FUA,
            ..RequestHeader::command(opcode, 0, 10, 0)
        };
        let mut guest = Guest::new();
        if opcode.writes() {
            assert_eq!(process(&mut guest, &header).code, StatusCode::Ok);
            assert_eq!(guest.storage.flushes.load(Ordering::Relaxed), 1);
            assert_eq!(guest.storage.unflushed(), [], "{opcode:?}");
            // A flush that fails is an error of the command.
            guest = Guest::with_storage(TestStorage::failing(None, 5));
            let status = process(&mut guest, &header);
            let failed = RequestStatus {
                code: StatusCode::IoError,
                result: 0,
            };
            assert_eq!(status, failed, "{opcode:?}");
        } else {
            assert_refused(&mut guest, &header, StatusCode::Invalid);
            assert_eq!(guest.storage.flushes.load(Ordering::Relaxed), 0);
        }
        let unknown = RequestHeader { flags: 2, ..header };
        assert_refused(&mut guest, &unknown, StatusCode::Invalid);
    }
}

#[test]
fn arguments_that_do_not_exist_are_refused() {
    let mut guest = Guest::new();
    for (opcode, argument) in [
        (Opcode::Discard, 1),
        (Opcode::WriteZeroes, 1 << 63),
        (Opcode::Crc32c, 1 << 32),
        (Opcode::Read, 1),
    ] {
        let header = RequestHeader::command(opcode, 0, 0, argument);
        assert_refused(&mut guest, &header, StatusCode::Invalid);
    }
}

#[test]
fn commands_carry_no_data() {
    for opcode in COMMANDS {
        for flags in [NEXT, NEXT | WRITE] {
            for length in [0, 64] {
                let mut guest = Guest::new();
                let before = guest.storage.contents();
                guest.put(
                    HEADER,
                    &RequestHeader::command(opcode, 0, length, 0).to_bytes(),
                );
                let table = [
                    desc(HEADER, 32, NEXT, 1),
                    desc(0x2000, 64, flags, 2),
                    desc(STATUS, 16, WRITE, 0),
                ];
                let completed = guest.process(&table).unwrap();
                assert_eq!(completed.status.code, StatusCode::Invalid);
                assert!(guest.storage.contents() == before);
            }
        }
    }
}

#[test]
fn commands_are_for_io_queues() {
    for opcode in COMMANDS {
        let mut guest = Guest::new();
        guest.put(HEADER, &RequestHeader::command(opcode, 0, 8, 0).to_bytes());
        put_table(&guest.mem, support::TABLE, &TABLE);
        let completed = guest
            .control
            .process(&guest.mem, support::head(0), || panic!("not asked to map"))
            .unwrap()
            .unwrap();
        assert_eq!(completed.status.code, StatusCode::Unsupported);
    }
}

#[test]
fn storage_errors_reach_the_driver() {
    for opcode in COMMANDS {
        for (errno, code) in [(5, StatusCode::IoError), (28, StatusCode::NoSpace)] {
            let mut guest = Guest::with_storage(TestStorage::failing(Some(105), errno));
            let header = RequestHeader::command(opcode, 100, 10, 0);
            let failed = RequestStatus { code, result: 0 };
            assert_eq!(process(&mut guest, &header), failed, "{opcode:?}");
        }
    }
}

/// Offsets and lengths that often overlap and often end near that of a chunk.
fn any_command() -> impl Strategy<Value = RequestHeader> {
    let offset = prop_oneof![
        2 => 0..LARGE,
        2 => 0..300u64,
        1 => PIECE - 20..PIECE + 20,
        1 => LARGE - 300..=LARGE,
    ];
    let length = prop_oneof![
        3 => 0..300u64,
        2 => 0..LARGE,
        2 => (1..4u64, 0..40u64).prop_map(|(n, more)| n * PIECE - 20 + more),
    ];
    let argument = prop_oneof![
        3 => offset.clone(),
        1 => any::<u64>(),
    ];
    (
        select(COMMANDS.to_vec()),
        offset,
        length,
        argument,
        any::<bool>(),
    )
        .prop_map(|(opcode, offset, length, argument, fua)| {
            let length = length.min(LARGE - offset).min(max_command(LARGE));
            let (length, argument) = match opcode {
                Opcode::Discard | Opcode::WriteZeroes => (length, 0),
                Opcode::Fill => (length, argument),
                Opcode::Crc32c => (length, argument & 0xffff_ffff),
                _ => {
                    let second = argument % (LARGE + 1);
                    (length.min(LARGE - second), second)
                }
            };
            let flags = if fua && opcode.writes() {
                RequestHeader::FUA
            } else {
                0
            };
            RequestHeader {
                flags,
                ..RequestHeader::command(opcode, offset, length, argument)
            }
        })
}

proptest! {
    #![proptest_config(support::cases(200))]

    #[test]
    fn commands_do_what_the_reference_says(
        commands in prop::collection::vec(any_command(), 1..12),
    ) {
        let mut guest = large();
        let mut expected = guest.storage.contents();
        for header in &commands {
            let result = execute(header, &mut expected);
            let done = RequestStatus { code: StatusCode::Ok, result };
            prop_assert_eq!(process(&mut guest, header), done, "{:?}", header);
            prop_assert!(guest.storage.contents() == expected, "storage differs after {:?}", header);
        }
    }
}
