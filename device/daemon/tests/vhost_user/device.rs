// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device as a guest sees it.

use std::time::Instant;

use crate::support::driver::{INDIRECT, Queue};
use crate::support::vmm::{EVENT_IDX, INDIRECT_DESC, PROTOCOL_FEATURES, VERSION_1};
use crate::support::{Daemon, NEXT, TEST_TIMEOUT, Vmm, WRITE, desc, pattern};
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol};

const MIB: u64 = 1 << 20;

fn ok(result: u64) -> RequestStatus {
    RequestStatus {
        code: StatusCode::Ok,
        result,
    }
}

#[track_caller]
fn assert_round_trip(queue: &mut Queue, offset: u64, len: usize, seed: u8) {
    let data = pattern(len, seed);
    assert_eq!(queue.write(offset, &data), ok(len as u64));
    queue.put(queue.data(), &vec![0xee; len]);
    let (status, read) = queue.read(offset, len);
    assert_eq!(status, ok(len as u64));
    assert!(read == data, "{len} bytes at {offset} came back different");
}

#[test]
fn offered_features_are_the_supported_ones() {
    let daemon = Daemon::start(&["--size", "10000", "--queues", "3"]);
    let mut vmm = Vmm::connect(daemon.socket(), 3, Protocol::all());
    assert_eq!(
        vmm.frontend.get_features().unwrap(),
        VERSION_1 | EVENT_IDX | INDIRECT_DESC | PROTOCOL_FEATURES
    );
    assert_eq!(
        vmm.frontend.get_protocol_features().unwrap(),
        Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::BACKEND_REQ
            | Protocol::BACKEND_SEND_FD
            | Protocol::CONFIG
            | Protocol::RESET_DEVICE
            | Protocol::SHMEM
    );
    let config = vmm.config();
    assert_eq!(config.io_queues(), 3);
    assert_eq!(config.capacity(), 10000);
    assert_eq!(config.aperture_bytes(), 8192);
    assert_eq!(config.max_request_bytes(), 4 << 20);
    assert_eq!(config.max_command_bytes(), 64 << 20);
    for raw in 1..=9 {
        assert!(config.supports(Opcode::from_raw(raw).unwrap()));
    }

    // Monitors read as many bytes as their command line says.
    let (_, bytes) = vmm
        .frontend
        .get_config(32, 100, VhostUserConfigFlags::empty(), &[0; 100])
        .unwrap();
    assert_eq!(bytes[..4], (4u32 << 20).to_le_bytes());
    assert_eq!(bytes[8..16], (64u64 << 20).to_le_bytes());
    assert_eq!(bytes[32..], [0; 68]);

    // One region: 10000 bytes have 2 whole pages, and a BAR is a power of two.
    let shmem = vmm.frontend.get_shmem_config().unwrap();
    assert_eq!(shmem.nregions, 1);
    assert_eq!(shmem.memory_sizes[0], 8192);
    assert!(shmem.memory_sizes[1..].iter().all(|size| *size == 0));
}

#[test]
fn data_written_on_any_queue_comes_back_on_any_other() {
    let daemon = Daemon::start(&["--size", "16M"]);
    let mut vmm = Vmm::start(daemon.socket(), 4);
    for (i, len) in [1, 511, 512, 4096, 4097, 65536, 1 << 20, 4 << 20]
        .into_iter()
        .enumerate()
    {
        let offset = 16 * MIB - len as u64 - i as u64;
        assert_round_trip(vmm.io(i % 4), offset, len, i as u8);
        let (status, read) = vmm.io((i + 1) % 4).read(offset, len);
        assert_eq!(status, ok(len as u64));
        assert!(read == pattern(len, i as u8));
    }
    assert_eq!(vmm.io(0).command(Opcode::Flush), ok(0));
}

#[test]
fn data_may_lie_across_memory_regions() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let data = pattern(8192, 3);
    let queue = vmm.io(0);
    assert_eq!(queue.write(77, &data), ok(8192));
    // See `Vmm::connect`: the second region starts 3 MiB into this queue.
    let boundary = queue.table() + 0x30_0000;
    assert_eq!(queue.read_to(77, boundary - 4095, 8192), ok(8192));
    assert!(queue.get(boundary - 4095, 8192) == data);
}

#[test]
fn indirect_request_with_as_many_segments_as_allowed() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let segments = vmm.config().max_segments();
    let queue = vmm.io(0);
    let data = pattern(usize::from(segments) * 3, 9);
    assert_eq!(queue.write(1000, &data), ok(data.len() as u64));

    queue.put_header(Opcode::Read, 0, 1000, data.len() as u64);
    let mut table = vec![desc(queue.header_at(), 32, NEXT, 1)];
    for i in 0..segments {
        // In descending order, so that the device has to follow the chain.
        let at = queue.data() + 64 * u64::from(segments - i);
        table.push(desc(at, 3, NEXT | WRITE, i + 2));
    }
    table.push(desc(queue.status_at(), 16, WRITE, 0));
    queue.put_table(2, &table);
    let len = queue.run(&[desc(
        queue.table() + 32,
        16 * table.len() as u32,
        INDIRECT,
        0,
    )]);
    assert_eq!(len as usize, data.len() + 16);
    assert_eq!(queue.status(), Some(ok(data.len() as u64)));
    let read: Vec<u8> = table[1..=usize::from(segments)]
        .iter()
        .flat_map(|d| queue.get(d.addr, 3))
        .collect();
    assert!(read == data);
}

#[test]
fn wrong_requests_are_answered_and_the_queue_goes_on() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1", "--max-request-size", "8K"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let queue = vmm.io(0);
    let code = |status: RequestStatus| status.code;
    assert_eq!(code(queue.write(MIB - 1, &[1, 2])), StatusCode::OutOfRange);
    assert_eq!(code(queue.read(u64::MAX, 1).0), StatusCode::OutOfRange);
    assert_eq!(code(queue.write(0, &[0; 8193])), StatusCode::Invalid);
    assert_eq!(code(queue.read_to(0, 1 << 40, 512)), StatusCode::Invalid);
    assert_eq!(
        code(queue.command(Opcode::MapAperture)),
        StatusCode::Unsupported
    );
    assert_eq!(
        code(vmm.control().command(Opcode::Flush)),
        StatusCode::Unsupported
    );
    assert_round_trip(vmm.io(0), 0, 8192, 1);
}

#[test]
fn one_kick_and_one_interrupt_for_a_batch() {
    const REQUESTS: u16 = 60;
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let queue = vmm.io(0);
    for i in 0..REQUESTS {
        let at = queue.scratch() + 0x1000 + 64 * u64::from(i);
        let header = RequestHeader::command(Opcode::Read, u64::from(i), 8, 0);
        queue.put(at, &header.to_bytes());
        queue.put_table(
            3 * i,
            &[
                desc(at, 32, NEXT, 3 * i + 1),
                desc(queue.data() + 8 * u64::from(i), 8, NEXT | WRITE, 3 * i + 2),
                desc(at + 48, 16, WRITE, 0),
            ],
        );
    }
    // All at once: the worker polls a ring that was just enabled, and would find some of them
    // without a kick.
    queue.add_all((0..REQUESTS).map(|i| 3 * i));
    queue.kick();
    assert_eq!(queue.wait_interrupt(), 1);
    for i in 0..REQUESTS {
        assert_eq!(queue.take_used(), Some((u32::from(3 * i), 24)));
    }
    assert_eq!(queue.take_used(), None);
}

#[test]
fn no_interrupt_that_the_driver_does_not_want() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let queue = vmm.io(0);
    queue.put_header(Opcode::Flush, 0, 0, 0);
    queue.put_table(
        0,
        &[
            desc(queue.header_at(), 32, NEXT, 1),
            desc(queue.status_at(), 16, WRITE, 0),
        ],
    );
    // The first two requests, with an interrupt for the second.
    queue.add(0);
    queue.put(queue.avail() + 4 + 2 * 256, &1u16.to_le_bytes());
    queue.kick();
    let deadline = Instant::now() + TEST_TIMEOUT;
    while queue.take_used().is_none() {
        assert!(Instant::now() < deadline, "the first request is not used");
        std::thread::yield_now();
    }
    queue.put(queue.avail() + 4, &[0; 4]);
    queue.put(queue.avail() + 2, &2u16.to_le_bytes());
    queue.kick();
    assert_eq!(queue.wait_interrupt(), 1);
    assert_eq!(queue.take_used(), Some((0, 16)));
}

#[test]
fn kick_before_enable_is_not_lost() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::connect(daemon.socket(), 1, Protocol::all());
    vmm.configure(&[0; 3]);
    let queue = vmm.io(0);
    queue.put_header(Opcode::Flush, 0, 0, 0);
    queue.put_table(
        0,
        &[
            desc(queue.header_at(), 32, NEXT, 1),
            desc(queue.status_at(), 16, WRITE, 0),
        ],
    );
    queue.add(0);
    queue.kick();
    vmm.enable();
    vmm.io(0).wait_interrupt();
    assert_eq!(vmm.io(0).take_used(), Some((0, 16)));
    assert_eq!(vmm.io(0).status(), Some(ok(0)));
}

#[test]
fn survives_many_reboots() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "2"]);
    let mut vmm = Vmm::connect(daemon.socket(), 2, Protocol::all());
    for round in 0..50u8 {
        vmm.start_device();
        assert_eq!(vmm.control().command(Opcode::MapAperture), ok(MIB));
        assert_round_trip(vmm.io(0), u64::from(round), 1000, round);
        assert_round_trip(vmm.io(1), 5000 + u64::from(round), 1000, round);
        assert_eq!(vmm.stop_device(), [1, 0, 2, 2]);
    }
    assert_eq!(vmm.maps(), 50);
}

#[test]
fn serves_62_io_queues() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "62"]);
    let mut vmm = Vmm::start(daemon.socket(), 62);
    for i in 0..62 {
        assert_round_trip(vmm.io(i), 1000 * i as u64, 1000, i as u8);
    }
}
