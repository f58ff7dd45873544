// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The program: arguments, files, signals, the end.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Daemon, NEXT, Vmm, WRITE, desc, pattern, process};
use ringbar_spec::{Opcode, RequestHeader};
use rustix::io::FdFlags;
use rustix::process::Signal;
use tempfile::TempDir;

/// Runs the daemon until it exits by itself.
fn run(socket: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = process::command(socket, args).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn ends_when_the_monitor_hangs_up() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.io(0).write(0, &[1; 100]);
    drop(vmm);
    daemon.assert_clean_exit();
}

#[test]
fn ends_when_the_monitor_hangs_up_before_any_message() {
    let daemon = Daemon::start(&["--size", "1M"]);
    drop(std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap());
    daemon.assert_clean_exit();
}

#[test]
fn signals_end_it_cleanly_at_any_time() {
    for signal in [Signal::TERM, Signal::INT] {
        let daemon = Daemon::start(&["--size", "1M"]);
        daemon.signal(signal);
        daemon.assert_clean_exit();

        let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
        let mut vmm = Vmm::start(daemon.socket(), 1);
        vmm.io(0).write(0, &[1; 100]);
        daemon.signal(signal);
        daemon.wait_log("closing the connection");
        daemon.assert_clean_exit();
    }
}

#[test]
fn counters_are_logged_at_the_end() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.io(0).write(0, &[1; 100]);
    vmm.io(0).write(5, &[1; 50]);
    vmm.io(0).read(0, 7);
    vmm.io(0).command(Opcode::Flush);
    vmm.io(0).read(1 << 20, 1);
    // Durable, one of them not within the device.
    let queue = vmm.io(0);
    for offset in [7, 1 << 20] {
        queue.put_header(Opcode::Write, RequestHeader::FUA, offset, 10);
        queue.run(&[
            desc(queue.header_at(), 32, NEXT, 1),
            desc(queue.data(), 10, NEXT, 2),
            desc(queue.status_at(), 16, WRITE, 0),
        ]);
    }
    drop(vmm);
    let line = daemon.wait_log("done requests=");
    for part in [
        "requests=7",
        "reads=1",
        " writes=3 ",
        "durable_writes=1 ",
        "flushes=1",
        "bytes_read=7",
        "bytes_written=160",
        "errors=2",
        "interrupts=7",
        "broken_queues=0",
    ] {
        assert!(line.contains(part), "{part} not in {line}");
    }
    daemon.assert_ended_well();
}

#[test]
fn keep_running_serves_several_monitors() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1", "--keep-running"]);
    let data = pattern(1000, 1);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.io(0).write(0, &data);
    drop(vmm);
    daemon.wait_log("disconnected");
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert!(vmm.io(0).read(0, 1000).1 == data);
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
}

#[test]
fn file_holds_the_data_after_a_flush() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("disk");
    let storage = format!("file:{}", file.display());
    let args = ["--size", "300000", "--queues", "1", "--storage", &storage];
    let daemon = Daemon::start_in(directory, &args);
    assert_eq!(fs::metadata(&file).unwrap().len(), 300_000);

    let mut vmm = Vmm::start(daemon.socket(), 1);
    let data = pattern(5000, 1);
    vmm.io(0).write(295_000, &data);
    vmm.io(0).command(Opcode::Flush);
    assert!(fs::read(&file).unwrap()[295_000..] == data);

    // Forced unit access at an odd place, across pages.
    let queue = vmm.io(0);
    queue.put(queue.data(), &data);
    queue.put_header(Opcode::Write, RequestHeader::FUA, 4001, 5000);
    queue.run(&[
        desc(queue.header_at(), 32, NEXT, 1),
        desc(queue.data(), 5000, NEXT, 2),
        desc(queue.status_at(), 16, WRITE, 0),
    ]);
    assert_eq!(queue.status().unwrap().result, 5000);
    assert!(fs::read(&file).unwrap()[4001..9001] == data);

    // Stores through the BAR are in the same file.
    vmm.control().command(Opcode::MapAperture);
    vmm.bar_write(100, b"through the bar");
    vmm.io(0).command(Opcode::Flush);
    assert_eq!(fs::read(&file).unwrap()[100..115], *b"through the bar");
    drop(vmm);
    let directory = daemon.assert_clean_exit();

    // Another device opens the file, without --size.
    let daemon = Daemon::start_in(directory, &["--queues", "1", "--storage", &storage]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.config().capacity(), 300_000);
    assert!(vmm.io(0).read(295_000, 5000).1 == data);
}

#[test]
fn file_in_use_is_refused() {
    let directory = TempDir::new().unwrap();
    let storage = format!("file:{}", directory.path().join("disk").display());
    let other = directory.path().join("other");
    let args = ["--size", "1M", "--storage", &storage];
    let daemon = Daemon::start_in(directory, &args);
    let (code, log) = run(&other, &args);
    assert_eq!(code, Some(1));
    assert!(log.contains("is in use"), "{log}");
    assert!(!other.exists());
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
}

#[test]
fn impossible_storage_is_refused() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    let here = format!("file:{}", directory.path().display());
    let absent = format!("file:{}/absent", directory.path().display());
    let nowhere = format!("file:{}/no/where", directory.path().display());
    for (args, message) in [
        (&["--storage", &here, "--size", "1M"][..], "cannot open"),
        (
            &["--storage", "file:/dev/null", "--size", "1M"],
            "not a regular file",
        ),
        (&["--storage", &absent], "give a size"),
        (&["--storage", &nowhere, "--size", "1M"], "cannot open"),
        (
            &["--storage", &absent, "--size", "4194304T"],
            "cannot allocate",
        ),
    ] {
        let (code, log) = run(&socket, args);
        assert_eq!(code, Some(1), "{args:?}: {log}");
        assert!(log.contains(message), "{args:?}: {log}");
        assert!(!socket.exists());
    }
}

#[test]
fn stale_socket_is_replaced() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let daemon = Daemon::start_in(directory, &["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
}

#[test]
fn socket_in_use_is_refused_and_left_alone() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let (code, log) = run(daemon.socket(), &["--size", "1M"]);
    assert_eq!(code, Some(1));
    assert!(log.contains("in use by another process"), "{log}");
    // The first process is not affected.
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
}

#[test]
fn other_files_are_never_removed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("precious");
    fs::write(&path, "data").unwrap();
    let (code, log) = run(&path, &["--size", "1M"]);
    assert_eq!(code, Some(1));
    assert!(log.contains("is not a socket"), "{log}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn inherited_socket_is_used_and_left_in_place() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::io::fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbar-device"));
    command
        .args(["--size", "1M", "--queues", "1", "--fd"])
        .arg(listener.as_raw_fd().to_string())
        .stderr(std::process::Stdio::piped());
    let mut daemon = Daemon::spawn(directory, socket, command);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
    drop(vmm);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(daemon.socket().exists());
}

#[test]
fn wrong_descriptors_are_refused() {
    for (fd, message) in [("0", "standard stream"), ("1000", "not open")] {
        let output = Command::new(env!("CARGO_BIN_EXE_ringbar-device"))
            .args(["--size", "1M", "--fd", fd])
            .output()
            .unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(message), "{log}");
    }
}

#[test]
fn socket_mode_limits_who_can_connect() {
    for (args, mode) in [
        (&["--size", "1M"][..], 0o600),
        (&["--size", "1M", "--socket-mode", "0660"], 0o660),
    ] {
        let daemon = Daemon::start(args);
        let found = fs::metadata(daemon.socket()).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode);
        daemon.signal(Signal::TERM);
        daemon.assert_clean_exit();
    }
}

#[test]
fn wrong_arguments_end_with_status_2() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    for args in [&["--size", "0"][..], &["--size", "1M", "--log", "=="]] {
        let (code, log) = run(&socket, args);
        assert_eq!(code, Some(2), "{log}");
    }
}

#[test]
fn json_log_is_json() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    fs::write(&socket, "").unwrap();
    let (_, log) = run(&socket, &["--size", "1M", "--log-format", "json"]);
    assert!(!log.is_empty());
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["level"], "ERROR");
    }
}
