// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a connection and of the process, in any state of guest and monitor.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::support::driver::Queue;
use crate::support::{Daemon, MapPolicy, NEXT, TEST_TIMEOUT, Vmm, WRITE, desc, process};
use ringbar_spec::{Opcode, RequestHeader};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A guest that keeps a queue full of commands, each of which takes the device longer
/// than it takes the guest to make the next one.
struct BusyGuest {
    stop_requested: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BusyGuest {
    /// Returns when the device has completed the first command.
    fn start(mut queue: Queue) -> Self {
        let header = RequestHeader::command(Opcode::Crc32c, 0, 64 << 20, 0);
        queue.put(queue.header_at(), &header.to_bytes());
        put_chain(&queue);
        queue.add_all([0; 64]);
        queue.kick();
        queue.wait_interrupt();
        let stop_requested = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stop_requested);
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                while queue.take_used().is_some() {
                    queue.add(0);
                }
                queue.kick();
            }
        });
        Self {
            stop_requested,
            thread: Some(thread),
        }
    }
}

impl Drop for BusyGuest {
    fn drop(&mut self) {
        self.stop_requested.store(true, Ordering::Relaxed);
        if let Some(Err(error)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the guest panicked: {error:?}");
        }
    }
}

/// Writes the chain of a request without data, whose header is written already.
fn put_chain(queue: &Queue) {
    queue.put_table(
        0,
        &[
            desc(queue.header_at(), 32, NEXT, 1),
            desc(queue.status_at(), 16, WRITE, 0),
        ],
    );
}

#[test]
fn ho5_sigterm_does_not_wait_for_a_busy_guest() {
    let mut daemon = Daemon::start(&["--size", "64M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let guest = BusyGuest::start(vmm.queues.remove(2));
    daemon.signal(Signal::TERM);
    daemon.wait_log("done requests=");
    drop(guest);
    let late = |line: &String| line.contains("did not end in time");
    assert!(!daemon.seen().iter().any(late), "{:#?}", daemon.seen());
    daemon.assert_ended_well();
}

#[test]
fn ho5_the_next_monitor_does_not_wait_for_the_guest_of_the_last_one() {
    let mut daemon = Daemon::start(&["--size", "64M", "--queues", "1", "--keep-running"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let guest = BusyGuest::start(vmm.queues.remove(2));
    drop(vmm);
    daemon.wait_log("disconnected");
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 100]).result, 100);
    drop(guest);
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
}

/// A monitor that never replies to a request to map.
fn start_without_map_reply(daemon: &Daemon) -> Vmm {
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.set_map_policy(MapPolicy::Ignore);
    let queue = vmm.control();
    queue.put_header(Opcode::MapAperture, 0, 0, 0);
    put_chain(queue);
    queue.add(0);
    queue.kick();
    wait_until("the aperture is asked for", || vmm.maps() > 0);
    vmm
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "too late: {what}");
        thread::yield_now();
    }
}

/// The monitor keeps the channel for the reply open.
#[test]
fn hang_up_ends_the_wait_for_a_map_reply() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1", "--keep-running"]);
    drop(start_without_map_reply(&daemon));
    daemon.wait_log("disconnected");
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 100]).result, 100);
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
}

#[test]
fn sigterm_ends_the_wait_for_a_map_reply() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let _vmm = start_without_map_reply(&daemon);
    daemon.signal(Signal::TERM);
    daemon.wait_log("done requests=");
    let late = |line: &String| line.contains("did not end in time");
    assert!(!daemon.seen().iter().any(late), "{:#?}", daemon.seen());
    daemon.assert_ended_well();
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sigint_after_another_signal_ends_the_process_at_once() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    // The process blocks when it opens this pipe, which has no reader.
    let lock = directory.path().join("socket.lock");
    mknodat(CWD, &lock, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut command = process::command(&socket, &["--size", "1M"]);
    let mut child = Killed(command.stderr(Stdio::null()).spawn().unwrap());
    let pid = Pid::from_child(&child.0);
    let has = |field: &str, signal: Signal| {
        let status = fs::read_to_string(format!("/proc/{}/status", child.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let mask = line.split_whitespace().last().unwrap();
        u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 != 0
    };
    wait_until("both signals are caught", || {
        has("SigCgt:", Signal::TERM) && has("SigCgt:", Signal::INT)
    });
    kill_process(pid, Signal::TERM).unwrap();
    wait_until("the first one has come", || !has("ShdPnd:", Signal::TERM));
    kill_process(pid, Signal::INT).unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()));
}
