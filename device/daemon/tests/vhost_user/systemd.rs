// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The program as a service of systemd: socket activation and readiness.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Daemon, TEST_TIMEOUT, Vmm, process};
use crate::survival::kill;
use ringbar_control::Client;
use ringbar_control::command::QueryDevice;
use rustix::io::FdFlags;
use rustix::process::Signal;
use tempfile::TempDir;

/// The manager's end of notifications.
fn manager(directory: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(directory.join("notify")).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    socket
}

/// The next notification.
fn notification(manager: &UnixDatagram) -> io::Result<String> {
    let mut text = [0; 1000];
    let length = manager.recv(&mut text)?;
    Ok(String::from_utf8(text[..length].to_vec()).unwrap())
}

/// A command line of the device to which a shell passes the listening sockets from descriptor 3 on,
/// and `environment`, as systemd does.
fn activated(listeners: &[&UnixListener], environment: &str) -> Command {
    let mut script = String::new();
    for (number, listener) in (3..).zip(listeners) {
        rustix::io::fcntl_setfd(listener, FdFlags::empty()).unwrap();
        script += &format!("exec {number}<&{}; ", listener.as_raw_fd());
    }
    script += &format!("{environment} exec \"$@\"");
    let mut command = Command::new("bash");
    command
        .args(["-c", &script, "-", env!("CARGO_BIN_EXE_ringbar-device")])
        .args(["--size", "1M", "--queues", "1"])
        .env_remove("RINGBAR_LOG")
        .stderr(Stdio::piped());
    command
}

#[test]
fn e8_socket_unit_starts_a_device_that_says_when_it_is_ready() {
    let directory = TempDir::new().unwrap();
    let manager = manager(directory.path());
    let socket = directory.path().join("socket");
    let control = directory.path().join("control");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = activated(&[&listener], "LISTEN_PID=$$ LISTEN_FDS=1");
    command
        .env("NOTIFY_SOCKET", directory.path().join("notify"))
        .arg("--control-socket")
        .arg(&control);
    let mut daemon = Daemon::spawn(directory, socket, command);
    drop(listener);
    assert_eq!(notification(&manager).unwrap().trim_end(), "READY=1");
    let mut client = Client::connect(&control, TEST_TIMEOUT).unwrap();
    assert_eq!(client.execute(QueryDevice {}).unwrap().bytes, 1 << 20);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
    daemon.signal(Signal::TERM);
    assert_eq!(notification(&manager).unwrap().trim_end(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
    // It belongs to systemd.
    assert!(daemon.socket().exists());
}

/// The supervisor has the socket, and tells the manager; its worker gets neither.
#[test]
fn e8_socket_unit_starts_a_supervisor() {
    let directory = TempDir::new().unwrap();
    let manager = manager(directory.path());
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let environment = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=device";
    let mut command = activated(&[&listener], environment);
    command
        .env("NOTIFY_SOCKET", directory.path().join("notify"))
        .args(["--supervise", "on", "--keep-running"]);
    let mut daemon = Daemon::spawn(directory, socket, command);
    drop(listener);
    assert_eq!(notification(&manager).unwrap().trim_end(), "READY=1");
    // The next worker gets no more than the first one.
    let worker = kill(&daemon);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
    let environment = fs::read(format!("/proc/{worker}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    let mut passed = environment.split('\0');
    let passed = passed.find(|variable| {
        let names = ["LISTEN_", "NOTIFY_SOCKET="];
        names.iter().any(|name| variable.starts_with(name))
    });
    assert_eq!(passed, None);
    daemon.signal(Signal::TERM);
    // The second worker is not ready once more.
    assert_eq!(notification(&manager).unwrap().trim_end(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(daemon.socket().exists());
    manager.set_nonblocking(true).unwrap();
    let end = notification(&manager).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn e8_device_that_cannot_listen_is_never_ready() {
    let directory = TempDir::new().unwrap();
    let manager = manager(directory.path());
    manager.set_nonblocking(true).unwrap();
    let none = || notification(&manager).unwrap_err().kind() == io::ErrorKind::WouldBlock;
    let (free, taken) = (
        directory.path().join("free"),
        directory.path().join("taken"),
    );
    let _listener = UnixListener::bind(&taken).unwrap();
    for (socket, control) in [(&taken, &free), (&free, &taken)] {
        let args = [
            "--size",
            "1M",
            "--control-socket",
            control.to_str().unwrap(),
        ];
        let output = process::command(socket, &args)
            .env("NOTIFY_SOCKET", directory.path().join("notify"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(none());
    }
}

#[test]
fn e8_sockets_of_another_process_or_too_many_are_refused() {
    let directory = TempDir::new().unwrap();
    let listeners = ["one", "two"].map(|name| directory.path().join(name));
    let listeners = listeners.map(|path| UnixListener::bind(path).unwrap());
    let both = [&listeners[0], &listeners[1]];
    for (environment, message) in [
        ("LISTEN_PID=1 LISTEN_FDS=1", "give --socket-path or --fd"),
        ("LISTEN_PID=$$ LISTEN_FDS=2", "passes 2 sockets"),
        ("LISTEN_PID=$$ LISTEN_FDS=many", "LISTEN_FDS"),
        ("", "give --socket-path or --fd"),
    ] {
        let output = activated(&both, environment).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{log}");
        assert!(log.contains(message), "{log}");
    }
}
