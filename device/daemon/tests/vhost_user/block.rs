// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device on block storage.

use std::fs::File;

use crate::support::driver::{INDIRECT, QUEUE_SIZE, Queue};
use crate::support::{Daemon, NEXT, Vmm, WRITE, desc, pattern};
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use rustix::process::Signal;
use tempfile::TempDir;

pub const BLOCK: u64 = 4096;
const SIZE: u64 = 4 << 20;

/// Starts a daemon on a file on a disk, which is called `disk`.
fn start() -> Daemon {
    start_with("4M")
}

/// As [`start`], with a file of this size.
fn start_with(size: &str) -> Daemon {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = format!("block:{}", directory.path().join("disk").display());
    let all = ["--size", size, "--queues", "2", "--storage", &storage];
    Daemon::start_in(directory, &all)
}

/// Makes a full ring of transfers available: number `n` is of block `n`, and its descriptors
/// are in a table of their own.
pub fn put_ring(queue: &mut Queue, opcode: Opcode) {
    put_ring_of(queue, |number| {
        RequestHeader::command(opcode, number * BLOCK, BLOCK, 0)
    });
}

/// Makes a full ring of requests available, of which one has a header for each number.
fn put_ring_of(queue: &mut Queue, header: impl Fn(u64) -> RequestHeader) {
    for number in 0..QUEUE_SIZE {
        let place = u64::from(number);
        let at = queue.scratch() + 256 * place;
        let header = header(place);
        let direction = match header.opcode {
            Opcode::Read => WRITE,
            _ => 0,
        };
        queue.put(at, &header.to_bytes());
        queue.put(at + 32, &RequestStatus::UNWRITTEN);
        let data = queue.data() + place * BLOCK;
        let after_header = if header.opcode.is_command() { 2 } else { 1 };
        let table = [
            (at, 32, NEXT, after_header),
            (data, BLOCK as u32, NEXT | direction, 2),
            (at + 32, 16, WRITE, 0),
        ];
        for (index, (addr, len, flags, next)) in (0u64..).zip(table) {
            let bytes = at + 64 + 16 * index;
            queue.put(bytes, &addr.to_le_bytes());
            queue.put(bytes + 8, &len.to_le_bytes());
            queue.put(bytes + 12, &flags.to_le_bytes());
            queue.put(bytes + 14, &u16::to_le_bytes(next));
        }
        queue.put_table(number, &[desc(at + 64, 48, INDIRECT, 0)]);
    }
    queue.add_all(0..QUEUE_SIZE);
    queue.kick();
}

/// Waits for a full ring, in any order.
#[track_caller]
fn wait_ring(queue: &mut Queue) {
    wait_ring_with(queue, StatusCode::Ok);
}

/// Waits for a full ring whose requests have this status.
#[track_caller]
pub fn wait_ring_with(queue: &mut Queue, code: StatusCode) {
    let result = match code {
        StatusCode::Ok => BLOCK,
        _ => 0,
    };
    let mut missing: Vec<_> = (0..u32::from(QUEUE_SIZE)).collect();
    while !missing.is_empty() {
        queue.want_interrupt();
        match queue.take_used() {
            Some((head, _)) => missing.retain(|other| *other != head),
            None => {
                queue.wait_interrupt();
            }
        }
    }
    for number in 0..u64::from(QUEUE_SIZE) {
        let bytes = queue.get(queue.scratch() + 256 * number + 32, 16);
        let status = RequestStatus::parse(bytes[..].try_into().unwrap()).unwrap();
        assert_eq!(status, RequestStatus { code, result });
    }
}

#[test]
fn a_full_ring_of_transfers_is_executed() {
    full_ring(start());
}

pub fn full_ring(daemon: Daemon) {
    let mut vmm = Vmm::start(daemon.socket(), 2);
    let bytes = (u64::from(QUEUE_SIZE) * BLOCK) as usize;
    let data = pattern(bytes, 3);
    let queue = vmm.io(0);
    queue.put(queue.data(), &data);
    put_ring(queue, Opcode::Write);
    wait_ring(queue);
    assert_eq!(vmm.io(1).command(Opcode::Flush).code, StatusCode::Ok);
    let queue = vmm.io(1);
    put_ring(queue, Opcode::Read);
    wait_ring(queue);
    assert!(queue.get(queue.data(), bytes) == data);
    // There is nothing to map.
    let mapped = vmm.control().command(Opcode::MapAperture);
    assert_eq!((mapped.code, mapped.result), (StatusCode::Ok, 0));
    assert_eq!((vmm.config().aperture_bytes(), vmm.maps()), (0, 0));
    drop(vmm);
    daemon.assert_ended_well();
}

#[test]
fn a_full_ring_survives_stops() {
    stops(&start());
}

/// The guest is stopped and goes on again and again with a full ring in flight.
pub fn stops(daemon: &Daemon) {
    let mut vmm = Vmm::start(daemon.socket(), 2);
    let bytes = (u64::from(QUEUE_SIZE) * BLOCK) as usize;
    // Rounds whose stop came before the last request was done.
    let mut interrupted = 0;
    for round in 0..200 {
        let data = pattern(bytes, round);
        let queue = vmm.io(0);
        queue.clear();
        queue.put(queue.data(), &data);
        put_ring(queue, Opcode::Write);
        let bases = vmm.stop_device();
        interrupted += u32::from(vmm.io(0).used_count() < QUEUE_SIZE);
        vmm.configure(&bases);
        vmm.enable();
        wait_ring(vmm.io(0));
        let (status, read) = vmm.io(1).read(0, bytes);
        assert_eq!(status.code, StatusCode::Ok);
        assert!(read == data);
        vmm.stop_device();
        if interrupted == 20 {
            return;
        }
        vmm.start_device();
    }
    panic!("only {interrupted} stops came before the ring was done");
}

#[test]
fn ho5_sigterm_does_not_wait_for_a_full_ring() {
    // A command reads all of this, so a ring takes many seconds, and some bytes of it have begun.
    const LENGTH: u64 = 64 << 20;
    let mut daemon = start_with("64M");
    let mut vmm = Vmm::start(daemon.socket(), 2);
    for queue in 0..2 {
        put_ring_of(vmm.io(queue), |_| {
            RequestHeader::command(Opcode::Crc32c, 0, LENGTH, 0)
        });
    }
    daemon.signal(Signal::TERM);
    let line = daemon.wait_log("done requests=");
    // Far from all of them.
    let used = (0..2).map(|queue| vmm.io(queue).used_count()).sum::<u16>();
    assert!(used < QUEUE_SIZE, "{used} are done: {line}");
    let late = |line: &String| line.contains("did not end in time");
    assert!(!daemon.seen().iter().any(late), "{:#?}", daemon.seen());
    daemon.assert_ended_well();
}

/// The guest gets errors beyond the end of what is left of the file, and the device lives.
#[test]
fn a_file_that_was_cut_off() {
    let daemon = start();
    let mut vmm = Vmm::start(daemon.socket(), 2);
    let data = pattern(100, 1);
    assert_eq!(vmm.io(0).write(5, &data).code, StatusCode::Ok);
    let file = File::options()
        .write(true)
        .open(daemon.directory().join("disk"));
    file.unwrap().set_len(SIZE / 2).unwrap();
    assert_eq!(vmm.io(0).read(SIZE - 10, 10).0.code, StatusCode::IoError);
    let header = RequestHeader::command(Opcode::Crc32c, 0, SIZE, 0);
    assert_eq!(vmm.io(1).execute(&header).code, StatusCode::IoError);
    assert_eq!(vmm.io(0).read(5, 100).1, data);
}
