// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Wrong descriptors, and a process without free descriptors.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, TEST_TIMEOUT, Vmm};
use ringbar_spec::{Event, QueueFault};
use rustix::process::Signal;
use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vmm_sys_util::eventfd::EventFd;

#[test]
fn failed_accept_is_retried() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1", "--keep-running"]);
    let limit = daemon.forbid_descriptors();
    drop(UnixStream::connect(daemon.socket()).unwrap());
    daemon.wait_log("cannot serve a connection now");
    daemon.wait_log("cannot serve a connection now");
    daemon.allow_descriptors(limit);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
}

/// The daemon releases all resources of a connection for which descriptors are missing.
#[test]
fn failed_connection_leaks_no_resources() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1", "--keep-running"]);
    let before = daemon.resources();
    let assert_unchanged = |daemon: &Daemon, more| {
        let deadline = Instant::now() + TEST_TIMEOUT;
        // Workers end after the failure was logged.
        while daemon.resources() != before {
            assert!(
                Instant::now() < deadline,
                "with {more} descriptors: {:?} instead of {before:?}",
                daemon.resources()
            );
            thread::sleep(Duration::from_millis(1));
        }
    };
    // A connection with two workers takes 9.
    for more in 0..9 {
        let limit = daemon.allow_more_descriptors(more);
        drop(UnixStream::connect(daemon.socket()).unwrap());
        daemon.wait_log("cannot serve a connection now");
        assert_unchanged(&daemon, more);
        daemon.allow_descriptors(limit);
        // With one too few the connection is accepted, and lost.
        if more < 8 {
            daemon.wait_log("disconnected");
            assert_unchanged(&daemon, more);
        }
    }
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
}

#[test]
fn failed_accept_of_a_control_connection_is_retried() {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control");
    let args = [
        "--size",
        "1M",
        "--control-socket",
        control.to_str().unwrap(),
    ];
    let mut daemon = Daemon::start_in(directory, &args);
    let limit = daemon.forbid_descriptors();
    // This one may still be accepted: the kernel had a descriptor ready for it.
    drop(UnixStream::connect(&control).unwrap());
    daemon.wait_log("cannot accept a connection to the control socket");
    daemon.allow_descriptors(limit);
    let mut stream = UnixStream::connect(&control).unwrap();
    writeln!(stream, "{{\"execute\": \"query-device\"}}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("1048576"), "{line}");
}

/// A number that was given by mistake may be that of a descriptor that the process opens.
#[test]
fn own_descriptors_are_not_taken_for_inherited_ones() {
    for fd in 3..10 {
        let output = Command::new("sh")
            .arg("-c")
            .arg("exec \"$@\" 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-")
            .args(["sh", env!("CARGO_BIN_EXE_ringbar-device"), "--size", "1M"])
            .args(["--fd", &fd.to_string()])
            .output()
            .unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("is not open in this process"), "{log}");
    }
}

#[test]
fn broken_kick_descriptor_stops_its_queue_only() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "2"]);
    let mut vmm = Vmm::connect(daemon.socket(), 2, Protocol::all());
    vmm.configure(&[0; 4]);
    let (reader, writer) = io::pipe().unwrap();
    // SAFETY: `into_raw_fd` has just released the descriptor, so nothing else owns it.
    let kick = unsafe { EventFd::from_raw_fd(reader.into_raw_fd()) };
    vmm.frontend.set_vring_kick(2, &kick).unwrap();
    vmm.enable();
    vmm.post_event_buffers(1);
    let mut writer = File::from(std::os::fd::OwnedFd::from(writer));
    writer.write_all(&1u64.to_ne_bytes()).unwrap();
    drop(writer);
    let event = Event::QueueBroken {
        queue: 2,
        fault: QueueFault::Ring,
    };
    assert_eq!(vmm.wait_event(), event);
    assert_eq!(vmm.io(1).write(0, &[1; 10]).result, 10);

    // The queue works again with a valid descriptor.
    vmm.stop_device();
    vmm.start_device();
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
    drop(vmm);
    daemon.wait_log("done requests=");
    // The broken descriptor has not kept the worker awake.
    let complaints = daemon.seen().iter();
    let complaints = complaints.filter(|line| line.contains("cannot read the doorbell"));
    assert_eq!(complaints.count(), 1, "{:#?}", daemon.seen());
    daemon.assert_ended_well();
}
