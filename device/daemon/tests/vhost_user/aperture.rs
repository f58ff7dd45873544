// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device memory behind the aperture.

use crate::support::vmm::APERTURE_AT;
use crate::support::{Daemon, MapPolicy, NEXT, Vmm, WRITE, desc, pattern, wait_until};
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

const UNAVAILABLE: RequestStatus = RequestStatus {
    code: StatusCode::ApertureUnavailable,
    result: 0,
};

fn mapped(bytes: u64) -> RequestStatus {
    RequestStatus {
        code: StatusCode::Ok,
        result: bytes,
    }
}

#[test]
fn requests_and_the_aperture_access_the_same_bytes() {
    let daemon = Daemon::start(&["--size", "1000000", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(
        vmm.control().command(Opcode::MapAperture),
        mapped(244 * 4096)
    );
    assert_eq!(vmm.bar_len(), 244 * 4096);

    let data = pattern(5000, 1);
    vmm.io(0).write(999, &data);
    assert!(vmm.bar_read(999, 5000) == data);

    let data = pattern(5000, 2);
    vmm.bar_write(994_000, &data);
    let (status, read) = vmm.io(0).read(994_000, 5000);
    assert_eq!(status, mapped(5000));
    assert!(read == data);
}

/// The last page is not filled by the device, and the file goes on in it.
#[test]
fn ho10_aperture_ends_with_the_device_memory() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("disk");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    let storage = format!("file:{}", file.display());
    let args = ["--size", "10000", "--queues", "1", "--storage", &storage];
    let daemon = Daemon::start_in(directory, &args);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.config().aperture_bytes(), 8192);
    assert_eq!(vmm.control().command(Opcode::MapAperture), mapped(8192));
    assert_eq!(vmm.bar_len(), 8192);
    // The rest of the device is there for requests, and nothing beyond.
    assert_eq!(vmm.io(0).write(8192, &[1; 1808]), mapped(1808));
    let (status, _) = vmm.io(0).read(9_999, 2);
    assert_eq!(status.code, StatusCode::OutOfRange);
    assert!(std::fs::read(&file).unwrap()[10_000..] == [7; (1 << 20) - 10_000]);
}

#[test]
fn ho10_device_smaller_than_a_page_has_no_aperture() {
    let daemon = Daemon::start(&["--size", "4095", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.config().aperture_bytes(), 0);
    assert_eq!(vmm.control().command(Opcode::MapAperture), mapped(0));
    assert_eq!(vmm.maps(), 0);
    assert_eq!(vmm.io(0).write(0, &[1; 4095]), mapped(4095));
}

#[test]
fn aperture_is_mapped_once_for_several_requests() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    for _ in 0..3 {
        assert_eq!(vmm.control().command(Opcode::MapAperture), mapped(1 << 20));
    }
    assert_eq!(vmm.maps(), 1);
}

#[test]
fn refused_map_is_reported_and_can_be_retried() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.set_map_policy(MapPolicy::Refuse);
    assert_eq!(vmm.control().command(Opcode::MapAperture), UNAVAILABLE);
    assert_eq!(vmm.control().command(Opcode::MapAperture), UNAVAILABLE);
    assert_eq!(vmm.maps(), 2);
    vmm.set_map_policy(MapPolicy::Accept);
    assert_eq!(vmm.control().command(Opcode::MapAperture), mapped(1 << 20));
}

/// Asks for the aperture, and waits until the device has seen the request.
fn ask(vmm: &mut Vmm) {
    let queue = vmm.control();
    let (map, other) = (queue.scratch(), queue.scratch() + 0x200);
    for (at, opcode) in [(map, Opcode::MapAperture), (other, Opcode::Read)] {
        let header = RequestHeader::command(opcode, 0, 0, 0);
        queue.put(at, &header.to_bytes());
    }
    queue.put_table(
        0,
        &[
            desc(map, 32, NEXT, 1),
            desc(queue.status_at(), 16, WRITE, 0),
            desc(other, 32, NEXT, 3),
            desc(other + 0x100, 16, WRITE, 0),
        ],
    );
    queue.add_all([0, 2]);
    queue.kick();
    queue.wait_interrupt();
    // The second request, which the device takes after the first one.
    assert_eq!(queue.take_used().map(|(head, _)| head), Some(2));
}

/// The driver resets the device and asks again before the monitor replies.
#[test]
fn a_reply_after_a_restart_is_followed_by_another_request() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.set_map_policy(MapPolicy::Wait);
    ask(&mut vmm);
    wait_until(|| match vmm.maps() {
        1 => Ok(()),
        maps => Err(format!("asked {maps} times")),
    });
    vmm.stop_device();
    vmm.start_device();
    ask(&mut vmm);
    assert_eq!(vmm.maps(), 1);
    vmm.control().want_interrupt();
    vmm.set_map_policy(MapPolicy::Refuse);
    let queue = vmm.control();
    queue.wait_interrupt();
    assert_eq!(queue.take_used().map(|(head, _)| head), Some(0));
    assert_eq!(queue.status(), Some(UNAVAILABLE));
    assert_eq!(vmm.maps(), 2);
    drop(vmm);
    daemon.assert_clean_exit();
}

#[test]
fn unavailable_without_the_protocol_feature() {
    for missing in [Protocol::SHMEM, Protocol::BACKEND_REQ] {
        let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
        let mut vmm = Vmm::connect(daemon.socket(), 1, Protocol::all() & !missing);
        vmm.start_device();
        assert_eq!(vmm.control().command(Opcode::MapAperture), UNAVAILABLE);
        // The rest works without.
        assert_eq!(vmm.io(0).write(0, &[1, 2, 3]), mapped(3));
    }
}

#[test]
fn data_segments_in_the_own_aperture_are_refused() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let data = pattern(4096, 7);
    vmm.io(0).write(0, &data);
    assert_eq!(vmm.control().command(Opcode::MapAperture), mapped(1 << 20));
    let status = vmm.io(0).read_to(0, APERTURE_AT + 100, 4096);
    assert_eq!(status.code, StatusCode::Invalid);
    assert!(vmm.bar_read(0, 4096) == data);
    // Other guest memory is in the same table and goes on working.
    let (status, read) = vmm.io(0).read(0, 4096);
    assert_eq!(status, mapped(4096));
    assert!(read == data);
}
