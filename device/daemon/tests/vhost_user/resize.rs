// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A resize of the running device.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::{Daemon, Vmm, pattern};
use ringbar_spec::{Event, Opcode, StatusCode};
use tempfile::TempDir;
use vhost::vhost_user::VhostUserFrontend;

/// Sends a request to the daemon whose control socket is in `directory`; returns the reply.
fn send_request(directory: &Path, request: &str) -> serde_json::Value {
    let mut stream = UnixStream::connect(directory.join("control")).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[track_caller]
fn resize(directory: &Path, bytes: u64) {
    let request = format!("{{\"execute\": \"resize\", \"arguments\": {{\"bytes\": {bytes}}}}}");
    let reply = send_request(directory, &request);
    assert_eq!(reply, serde_json::json!({"return": {}}));
}

fn start(args: &[&str]) -> Daemon {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control");
    let mut all = vec!["--control-socket", control.to_str().unwrap()];
    all.extend(args);
    Daemon::start_in(directory, &all)
}

fn changed(capacity: u64) -> Event {
    Event::CapacityChanged { capacity }
}

#[test]
fn resize_is_announced_and_the_new_end_is_accessible() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.post_event_buffers(4);
    let data = pattern(5000, 1);
    let (status, _) = vmm.io(0).read(2 << 20, 5000);
    assert_eq!(status.code, StatusCode::OutOfRange);

    resize(daemon.directory(), 3 << 20);
    assert_eq!(vmm.wait_event(), changed(3 << 20));
    let config = vmm.config();
    assert_eq!(config.capacity(), 3 << 20);
    // The mapping in the monitor is unchanged.
    assert_eq!(config.aperture_bytes(), 1 << 20);
    let reply = vmm.control().command(Opcode::MapAperture);
    assert_eq!(reply.result, 1 << 20);
    vmm.io(0).write((3 << 20) - 5000, &data);
    assert!(vmm.io(0).read((3 << 20) - 5000, 5000).1 == data);

    resize(daemon.directory(), 10_000);
    assert_eq!(vmm.wait_event(), changed(10_000));
    assert_eq!(vmm.config().aperture_bytes(), 8192);
    let (status, _) = vmm.io(0).read(9_999, 2);
    assert_eq!(status.code, StatusCode::OutOfRange);
    assert_eq!(vmm.io(0).read(9_999, 1).0.code, StatusCode::Ok);

    // The monitor still maps the whole former size.
    resize(daemon.directory(), 2 << 20);
    assert_eq!(vmm.wait_event(), changed(2 << 20));
    assert_eq!(vmm.config().aperture_bytes(), 1 << 20);
}

#[test]
fn driver_without_event_buffers_gets_the_latest_capacity_only() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    for bytes in [5 << 20, 6 << 20, 7 << 20] {
        resize(daemon.directory(), bytes);
    }
    vmm.post_event_buffers(2);
    assert_eq!(vmm.wait_event(), changed(7 << 20));
    resize(daemon.directory(), 1 << 20);
    assert_eq!(vmm.wait_event(), changed(1 << 20));
}

/// A driver reads the configuration when it starts the device, so it needs no event.
#[test]
fn capacity_change_from_before_a_reset_is_not_delivered() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    resize(daemon.directory(), 5 << 20);
    vmm.frontend.reset_device().unwrap();
    vmm.start_device();
    vmm.post_event_buffers(2);
    // The worker of the control queue also has the event queue, so it has processed that.
    vmm.control().command(Opcode::MapAperture);
    resize(daemon.directory(), 6 << 20);
    assert_eq!(vmm.wait_event(), changed(6 << 20));
}

#[test]
fn next_monitor_maps_the_whole_resized_memory() {
    let daemon = start(&["--size", "1M", "--queues", "1", "--keep-running"]);
    let vmm = Vmm::start(daemon.socket(), 1);
    drop(vmm);
    resize(daemon.directory(), 5 << 20);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.config().aperture_bytes(), 5 << 20);
    let reply = vmm.control().command(Opcode::MapAperture);
    assert_eq!(reply.result, 5 << 20);
    assert_eq!(vmm.bar_len(), 5 << 20);
}

#[test]
fn impossible_resize_is_refused_with_a_reason() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let reply = send_request(
        daemon.directory(),
        "{\"execute\": \"resize\", \"arguments\": {\"bytes\": 9223372036854775807}}",
    );
    let reason = reply["error"]["desc"].as_str().unwrap();
    assert!(reason.contains("9223372036854775807 bytes"), "{reason}");
    let reply = send_request(daemon.directory(), "{\"execute\": \"query-device\"}");
    assert_eq!(reply["return"]["bytes"], 1 << 20);
}
