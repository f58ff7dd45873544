// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands as a guest gives them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::driver::Queue;
use crate::support::{Daemon, NEXT, Vmm, WRITE, desc, pattern};
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

#[track_caller]
fn command(queue: &mut Queue, opcode: Opcode, offset: u64, length: u64, argument: u64) -> u64 {
    let status = queue.execute(&RequestHeader::command(opcode, offset, length, argument));
    assert_eq!(status.code, StatusCode::Ok, "{opcode:?}");
    status.result
}

#[track_caller]
fn read(queue: &mut Queue, offset: u64, len: usize) -> Vec<u8> {
    let (status, data) = queue.read(offset, len);
    assert_eq!(status.code, StatusCode::Ok);
    data
}

/// Waits for the next used entry.
#[track_caller]
fn next_used(queue: &mut Queue) -> (u32, u32) {
    loop {
        queue.want_interrupt();
        if let Some(used) = queue.take_used() {
            return used;
        }
        queue.wait_interrupt();
    }
}

#[test]
fn commands_work_within_the_device_memory() {
    commands_work(TempDir::new().unwrap(), "memory");
}

#[test]
fn commands_work_on_block_storage() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = format!("block:{}", directory.path().join("disk").display());
    commands_work(directory, &storage);
}

#[track_caller]
fn commands_work(directory: TempDir, storage: &str) {
    let args = ["--size", "8M", "--queues", "2", "--storage", storage];
    let mut daemon = Daemon::start_in(directory, &args);
    let mut vmm = Vmm::start(daemon.socket(), 2);
    let data = pattern(1 << 20, 5);
    vmm.io(0).write(100, &data);
    let queue = vmm.io(1);

    // Forwards and backwards into itself, and elsewhere.
    assert_eq!(command(queue, Opcode::Copy, 5 * MIB + 3, MIB, 100), MIB);
    assert!(read(queue, 5 * MIB + 3, 1 << 20) == data);
    assert_eq!(command(queue, Opcode::Copy, 1100, MIB, 100), MIB);
    assert!(read(queue, 1100, 1 << 20) == data);
    assert_eq!(command(queue, Opcode::Copy, 50, MIB, 1100), MIB);
    assert!(read(queue, 50, 1 << 20) == data);

    let place = 5 * MIB + 3;
    assert_eq!(command(queue, Opcode::Compare, 50, MIB, place), MIB);
    queue.write(place + 700_001, &[!data[700_001]]);
    assert_eq!(command(queue, Opcode::Compare, 50, MIB, place), 700_001);

    queue.write(7, b"123456789");
    assert_eq!(command(queue, Opcode::Crc32c, 7, 9, 0), 0xe306_9283);
    let before = command(queue, Opcode::Crc32c, 7, 4, 0);
    assert_eq!(command(queue, Opcode::Crc32c, 11, 5, before), 0xe306_9283);

    let word = u64::from_le_bytes(*b"RINGBAR!");
    assert_eq!(command(queue, Opcode::Fill, 3, 13, word), 13);
    assert_eq!(read(queue, 3, 13), b"RINGBAR!RINGB");
    for opcode in [Opcode::Discard, Opcode::WriteZeroes] {
        command(queue, Opcode::Fill, 0, MIB, u64::MAX);
        assert_eq!(command(queue, opcode, 5, MIB - 10, 0), MIB - 10);
        let read = read(queue, 0, 1 << 20);
        assert_eq!(read[..5], [0xff; 5]);
        assert!(read[5..(1 << 20) - 5].iter().all(|byte| *byte == 0));
        assert_eq!(read[(1 << 20) - 5..], [0xff; 5]);
    }

    drop(vmm);
    let line = daemon.wait_log("done requests=");
    for part in [
        "discards=1 ",
        "write_zeroes=1 ",
        "copies=3 ",
        "fills=3 ",
        "compares=2 ",
        "checksums=3 ",
        "errors=0 ",
    ] {
        assert!(line.contains(part), "{part} not in {line}");
    }
    daemon.assert_ended_well();
}

#[test]
fn discard_makes_the_file_smaller() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    let storage = format!("file:{}", path.display());
    let daemon = Daemon::start(&["--size", "8M", "--queues", "1", "--storage", &storage]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let queue = vmm.io(0);
    command(queue, Opcode::Fill, 0, 8 * MIB, 0x5555_5555_5555_5555);
    let full = fs::metadata(&path).unwrap().blocks();
    assert!(full * 512 >= 8 * MIB);

    let discard = RequestHeader {
        flags: RequestHeader::FUA,
        ..RequestHeader::command(Opcode::Discard, 2 * MIB, 4 * MIB, 0)
    };
    let done = RequestStatus {
        code: StatusCode::Ok,
        result: 4 * MIB,
    };
    assert_eq!(queue.execute(&discard), done);
    let rest = fs::metadata(&path).unwrap().blocks();
    assert!(
        rest * 512 <= full * 512 - 4 * MIB,
        "{full} to {rest} blocks"
    );
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 8 << 20);
    for (i, chunk) in bytes.chunks(1 << 20).enumerate() {
        let value = if (2..6).contains(&i) { 0 } else { 0x55 };
        assert!(chunk.iter().all(|byte| *byte == value), "MiB {i}");
    }

    // What was given up can be used again.
    assert_eq!(queue.write(3 * MIB, &[1; 100]).code, StatusCode::Ok);
    assert_eq!(read(queue, 3 * MIB - 1, 102)[..3], [0, 1, 1]);
}

#[test]
fn wrong_commands_are_answered_and_the_queue_goes_on() {
    let args = ["--size", "1M", "--queues", "1", "--max-command-size", "64K"];
    let daemon = Daemon::start(&args);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.config().max_command_bytes(), 65536);
    let queue = vmm.io(0);
    for (opcode, offset, length, argument, code) in [
        (Opcode::Copy, 0, 65537, 0, StatusCode::Invalid),
        (Opcode::Copy, 0, 65536, MIB - 65535, StatusCode::OutOfRange),
        (Opcode::Compare, 0, 2, u64::MAX, StatusCode::OutOfRange),
        (Opcode::Discard, MIB, 1, 0, StatusCode::OutOfRange),
        (Opcode::Fill, u64::MAX, 1, 0, StatusCode::OutOfRange),
        (Opcode::Crc32c, 0, 1, 1 << 32, StatusCode::Invalid),
        (Opcode::WriteZeroes, 0, 1, 1, StatusCode::Invalid),
    ] {
        let header = RequestHeader::command(opcode, offset, length, argument);
        let refused = RequestStatus { code, result: 0 };
        assert_eq!(queue.execute(&header), refused, "{header:?}");
    }
    assert_eq!(command(queue, Opcode::Fill, 0, 65536, 1), 65536);
}

/// The monitor does not have to wait for a ring full of commands, and those that
/// were not completed are when the guest goes on.
#[test]
fn stop_comes_between_long_commands() {
    const COMMANDS: u16 = 120;
    let daemon = Daemon::start(&["--size", "64M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let queue = vmm.io(0);
    for i in 0..COMMANDS {
        let at = queue.scratch() + 0x1000 + 64 * u64::from(i);
        let header = RequestHeader::command(Opcode::Fill, 0, 64 * MIB, u64::from(i));
        queue.put(at, &header.to_bytes());
        queue.put_table(
            2 * i,
            &[desc(at, 32, NEXT, 2 * i + 1), desc(at + 48, 16, WRITE, 0)],
        );
        queue.add(2 * i);
    }
    queue.kick();
    assert_eq!(next_used(queue), (0, 16));

    let bases = vmm.stop_device();
    let completed = bases[2] as u16;
    assert!((1..COMMANDS).contains(&completed), "{completed} completed");
    for i in 1..completed {
        assert_eq!(vmm.io(0).take_used(), Some((u32::from(2 * i), 16)));
    }
    assert_eq!(vmm.io(0).take_used(), None);

    vmm.configure(&bases);
    vmm.enable();
    let queue = vmm.io(0);
    queue.kick();
    for i in completed..COMMANDS {
        assert_eq!(next_used(queue), (u32::from(2 * i), 16));
    }
    let last = u64::from(COMMANDS - 1).to_le_bytes();
    assert_eq!(read(queue, 64 * MIB - 8, 8), last);
}
