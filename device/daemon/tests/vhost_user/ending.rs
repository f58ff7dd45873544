// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end, whatever guest and monitor do meanwhile.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::support::driver::Queue;
use crate::support::{Daemon, MapPolicy, NEXT, PATIENCE, Vmm, WRITE, desc};
use ringbar_spec::{Opcode, RequestHeader};
use rustix::process::Signal;

/// A guest that keeps a queue full of commands, each of which takes the device longer
/// than it takes the guest to make the next one.
struct BusyGuest {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BusyGuest {
    /// Returns when the device serves it.
    fn start(mut queue: Queue) -> Self {
        let header = RequestHeader::command(Opcode::Crc32c, 0, 64 << 20, 0);
        queue.put(queue.header_at(), &header.to_bytes());
        put_chain(&queue);
        queue.add_all([0; 64]);
        queue.kick();
        queue.wait_interrupt();
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                while queue.take_used().is_some() {
                    queue.add(0);
                }
                queue.kick();
            }
        });
        Self {
            ends,
            thread: Some(thread),
        }
    }
}

impl Drop for BusyGuest {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(Err(error)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the guest panicked: {error:?}");
        }
    }
}

/// A request whose header is in its place already.
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

#[test]
fn a_second_sigint_ends_it_at_once() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    // The worker of the control queue waits for an answer that does not come.
    vmm.set_map_policy(MapPolicy::Ignore);
    let queue = vmm.control();
    queue.put_header(Opcode::MapAperture, 0, 0, 0);
    put_chain(queue);
    queue.add(0);
    queue.kick();
    let deadline = Instant::now() + PATIENCE;
    while vmm.maps() == 0 {
        assert!(Instant::now() < deadline, "the aperture is not asked for");
        thread::yield_now();
    }
    daemon.signal(Signal::TERM);
    daemon.wait_log("closing the connection");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().signal(), Some(Signal::INT.as_raw()));
}
