// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The worker is killed, crashes, or is replaced, and the virtual machine notices nothing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ringbar_spec::{Event, Opcode, RequestHeader, RequestStatus, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::support::driver::Queue;
use crate::support::{Daemon, NEXT, TEST_TIMEOUT, Vmm, WRITE, desc, pattern, process};

/// Requests in flight in each queue.
const DEPTH: u16 = 8;

/// Bytes of each request.
const LENGTH: usize = 64 << 10;

fn start(args: &[&str]) -> Daemon {
    Daemon::start(&[&["--supervise", "on"], args].concat())
}

/// The worker of a supervisor, once there is one that is not `other`.
fn worker(daemon: &Daemon, other: Option<Pid>) -> Pid {
    let id = daemon.id();
    let path = format!("/proc/{id}/task/{id}/children");
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let children = fs::read_to_string(&path).unwrap();
        let mut pids = children.split_whitespace();
        if let Some(pid) = pids
            .next()
            .and_then(|pid| Pid::from_raw(pid.parse().unwrap()))
            && Some(pid) != other
        {
            return pid;
        }
        assert!(Instant::now() < deadline, "there is no other worker");
        thread::yield_now();
    }
}

/// Kills the worker of a supervisor, and returns the next one.
pub fn kill(daemon: &Daemon) -> Pid {
    let pid = worker(daemon, None);
    kill_process(pid, Signal::KILL).unwrap();
    worker(daemon, Some(pid))
}

/// A driver that keeps a queue busy, and verifies all data.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Uses the device memory from `offset` on.
    fn start(mut queue: Queue, offset: u64) -> Self {
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let round = counts.load(Ordering::Relaxed);
                write_and_verify(&mut queue, offset, round as u8);
                counts.store(round + 1, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            rounds,
            thread: Some(thread),
        }
    }

    /// Waits until a round that begins after now has ended.
    #[track_caller]
    fn wait_round(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        let deadline = Instant::now() + TEST_TIMEOUT;
        while self.rounds.load(Ordering::Relaxed) < before + 2 {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended && Instant::now() < deadline, "no progress");
            thread::yield_now();
        }
    }

    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Writes with several requests in flight, and reads what was written.
fn write_and_verify(queue: &mut Queue, offset: u64, round: u8) {
    let data = |i: u16| pattern(LENGTH, round.wrapping_mul(DEPTH as u8) ^ i as u8);
    for i in 0..DEPTH {
        queue.put(data_at(queue, i), &data(i));
    }
    run_all(queue, Opcode::Write, offset);
    for i in 0..DEPTH {
        queue.put(data_at(queue, i), &vec![0xee; LENGTH]);
    }
    run_all(queue, Opcode::Read, offset);
    for i in 0..DEPTH {
        let found = queue.get(data_at(queue, i), LENGTH);
        assert!(found == data(i), "round {round}, request {i}");
    }
}

fn data_at(queue: &Queue, i: u16) -> u64 {
    queue.data() + LENGTH as u64 * u64::from(i)
}

/// Submits all requests at once, and waits until each was used exactly once.
fn run_all(queue: &mut Queue, opcode: Opcode, offset: u64) {
    let scratch = queue.scratch();
    let header_at = |i: u16| scratch + 0x40 * u64::from(i);
    let status_at = |i: u16| scratch + 0x1000 + 0x40 * u64::from(i);
    let before = queue.used_count();
    for i in 0..DEPTH {
        let header = RequestHeader {
            opcode,
            flags: 0,
            offset: offset + LENGTH as u64 * u64::from(i),
            length: LENGTH as u64,
            argument: 0,
        };
        queue.put(header_at(i), &header.to_bytes());
        queue.put(status_at(i), &RequestStatus::UNWRITTEN);
        let flags = if opcode == Opcode::Read { WRITE } else { 0 };
        queue.put_table(
            3 * i,
            &[
                desc(header_at(i), 32, NEXT, 3 * i + 1),
                desc(data_at(queue, i), LENGTH as u32, NEXT | flags, 3 * i + 2),
                desc(status_at(i), 16, WRITE, 0),
            ],
        );
    }
    queue.add_all((0..DEPTH).map(|i| 3 * i));
    queue.kick();
    let mut used = [false; DEPTH as usize];
    while used.contains(&false) {
        match queue.take_used() {
            Some((head, _)) => {
                let used = &mut used[head as usize / 3];
                assert!(!std::mem::replace(used, true), "head {head} is used twice");
            }
            None => {
                queue.want_interrupt();
                if queue.used_count() == before.wrapping_add(used_count(&used)) {
                    queue.wait_interrupt();
                }
            }
        }
    }
    assert_eq!(queue.used_count(), before.wrapping_add(DEPTH));
    for i in 0..DEPTH {
        let bytes = queue.get(status_at(i), 16);
        let status = RequestStatus::parse(bytes[..].try_into().unwrap()).unwrap();
        assert_eq!(status.code, StatusCode::Ok);
    }
}

fn used_count(used: &[bool]) -> u16 {
    used.iter().filter(|used| **used).count() as u16
}

/// Kills the worker so often while two queues are busy.
fn kill_under_load(daemon: &Daemon, kills: u32) {
    let mut vmm = Vmm::start(daemon.socket(), 2);
    vmm.post_event_buffers(4);
    let second = Load::start(vmm.queues.remove(3), 8 << 20);
    let first = Load::start(vmm.queues.remove(2), 0);
    for _ in 0..kills {
        kill(daemon);
        first.wait_round();
        second.wait_round();
    }
    first.finish();
    second.finish();
}

#[test]
fn d3_workers_killed_under_load_lose_nothing_and_do_nothing_twice() {
    let daemon = start(&["--size", "16M", "--queues", "2"]);
    kill_under_load(&daemon, 30);
    daemon.assert_clean_exit();
}

#[test]
fn d3_memory_in_a_file_survives() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = format!("file:{}", directory.path().join("memory").display());
    let daemon = start(&["--size", "16M", "--queues", "2", "--storage", &file]);
    kill_under_load(&daemon, 10);
    daemon.assert_clean_exit();
}

#[test]
fn d3_memory_on_a_disk_survives() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = format!("block:{}", directory.path().join("memory").display());
    let daemon = start(&["--size", "16M", "--queues", "2", "--storage", &file]);
    kill_under_load(&daemon, 10);
    daemon.assert_clean_exit();
}

#[test]
fn d3_a_worker_can_be_killed_between_any_messages() {
    let daemon = start(&["--size", "4M", "--queues", "1", "--keep-running"]);
    kill(&daemon);
    let mut vmm = Vmm::connect(daemon.socket(), 1, VhostUserProtocolFeatures::all());
    kill(&daemon);
    assert_eq!(vmm.config().capacity(), 4 << 20);
    for queue in &mut vmm.queues {
        queue.clear();
    }
    kill(&daemon);
    vmm.configure(&[0; 3]);
    kill(&daemon);
    vmm.enable();
    kill(&daemon);
    let data = pattern(100_000, 1);
    assert_eq!(vmm.io(0).write(0, &data).code, StatusCode::Ok);
    kill(&daemon);
    assert!(vmm.io(0).read(0, data.len()).1 == data);
    // The guest is stopped, and goes on.
    let bases = vmm.stop_device();
    assert_eq!(bases, [0, 0, 2]);
    kill(&daemon);
    vmm.configure(&bases);
    vmm.enable();
    assert!(vmm.io(0).read(0, data.len()).1 == data);
    // The driver starts anew.
    vmm.stop_device();
    vmm.frontend.reset_device().unwrap();
    kill(&daemon);
    vmm.start_device();
    kill(&daemon);
    assert!(vmm.io(0).read(0, data.len()).1 == data);
    drop(vmm);
    // The memory outlives the connection as well.
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert!(vmm.io(0).read(0, data.len()).1 == data);
    drop(vmm);
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
}

/// However early: before it is ready, or before it exists.
#[test]
fn d3_workers_can_be_killed_one_after_the_other() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 100]).code, StatusCode::Ok);
    for _ in 0..200 {
        kill(&daemon);
    }
    assert_eq!(vmm.io(0).read(0, 100).1, [1; 100]);
    drop(vmm);
    daemon.assert_clean_exit();
}

/// Waits until a process or thread is in this state (`/proc/ID/stat`).
fn wait_state(id: u32, state: &str) {
    let path = format!("/proc/{id}/stat");
    let deadline = Instant::now() + TEST_TIMEOUT;
    let is_in_state = || {
        let stat = fs::read_to_string(&path).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with(state)
    };
    while !is_in_state() {
        assert!(Instant::now() < deadline, "{id} is not {state}");
        thread::yield_now();
    }
}

/// Has the monitor ask a worker that is killed before it replies.
fn ask_killed<R: Send + 'static>(
    daemon: &Daemon,
    mut vmm: Vmm,
    ask: impl FnOnce(&mut Vmm) -> R + Send + 'static,
) -> (Vmm, R) {
    let pid = worker(daemon, None);
    kill_process(pid, Signal::STOP).unwrap();
    wait_state(pid.as_raw_nonzero().get() as u32, "T");
    let ((sender, receiver), (done, replied)) = (channel(), channel());
    thread::spawn(move || {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        sender.send(id as u32).unwrap();
        let reply = ask(&mut vmm);
        done.send((vmm, reply)).unwrap();
    });
    // Both have done what they can.
    wait_state(receiver.recv().unwrap(), "S");
    wait_state(daemon.id(), "S");
    kill(daemon);
    replied.recv_timeout(TEST_TIMEOUT).expect("no reply")
}

#[test]
fn d3_the_next_worker_owes_the_reply() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 100]).code, StatusCode::Ok);
    let (vmm, config) = ask_killed(&daemon, vmm, Vmm::config);
    assert_eq!(config.capacity(), 1 << 20);
    let (mut vmm, bases) = ask_killed(&daemon, vmm, Vmm::stop_device);
    assert_eq!(bases, [0, 0, 1]);
    vmm.configure(&bases);
    let (mut vmm, ()) = ask_killed(&daemon, vmm, Vmm::enable);
    assert_eq!(vmm.io(0).read(0, 100).1, [1; 100]);
    drop(vmm);
    daemon.assert_clean_exit();
}

#[test]
fn d3_the_aperture_is_mapped_once_and_stays() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.control().command(Opcode::MapAperture).result, 1 << 20);
    vmm.bar_write(5000, b"through the BAR");
    kill(&daemon);
    assert_eq!(vmm.io(0).read(5000, 15).1, b"through the BAR");
    assert_eq!(vmm.io(0).write(5000, b"by DMA").code, StatusCode::Ok);
    assert_eq!(vmm.bar_read(5000, 15), b"by DMAh the BAR");
    // The next worker does not know that it is mapped, but the supervisor does.
    assert_eq!(vmm.control().command(Opcode::MapAperture).result, 1 << 20);
    assert_eq!(vmm.maps(), 1);
    // After a reset it is not.
    vmm.stop_device();
    vmm.frontend.reset_device().unwrap();
    vmm.start_device();
    assert_eq!(vmm.control().command(Opcode::MapAperture).result, 1 << 20);
    assert_eq!(vmm.maps(), 2);
    drop(vmm);
    daemon.assert_clean_exit();
}

/// Sends a request to the control socket.
fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap();
    reply
}

#[test]
fn d3_a_new_size_and_its_event_survive() {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control");
    let path = control.to_str().unwrap();
    let daemon = start(&["--size", "1M", "--queues", "1", "--control-socket", path]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let resize = r#"{"execute": "resize", "arguments": {"bytes": 3145728}}"#;
    assert_eq!(ask(&control, resize), "{\"return\":{}}\n");
    // The driver has put no buffer there for the event.
    kill(&daemon);
    vmm.post_event_buffers(2);
    let capacity = 3 << 20;
    assert_eq!(vmm.wait_event(), Event::CapacityChanged { capacity });
    assert_eq!(vmm.config().capacity(), capacity);
    assert_eq!(vmm.config().aperture_bytes(), 1 << 20);
    assert_eq!(vmm.io(0).write(2 << 20, &[1; 100]).code, StatusCode::Ok);
    assert!(ask(&control, r#"{"execute": "query-device"}"#).contains("3145728"));
    drop(vmm);
    daemon.assert_clean_exit();
    assert!(!control.exists());
}

/// Whether or not the next connection could do better.
#[test]
fn d3_a_worker_that_crashes_again_and_again_is_given_up() {
    for args in [&[][..], &["--keep-running"]] {
        let mut daemon = start(&[&["--size", "1M", "--queues", "1"], args].concat());
        let mut vmm = Vmm::start(daemon.socket(), 1);
        for crash in 0..5 {
            assert_eq!(vmm.io(0).write(0, &[crash; 100]).code, StatusCode::Ok);
            let pid = worker(&daemon, None);
            kill_process(pid, Signal::ABORT).unwrap();
            if crash < 4 {
                worker(&daemon, Some(pid));
            }
        }
        daemon.wait_log("given up after 5 failures of the device within 10 s");
        assert_eq!(daemon.wait().code(), Some(1));
    }
}

#[test]
fn d3_a_signal_ends_a_device_that_fails_meanwhile() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("memory");
    let storage = format!("file:{}", file.display());
    let args = ["--size", "1M", "--queues", "1", "--storage", &storage];
    let mut daemon = start(&[&args[..], &["--keep-running"]].concat());
    let mut vmm = Vmm::start(daemon.socket(), 1);
    // So the last data cannot be written.
    fs::write(&file, "").unwrap();
    assert_eq!(vmm.io(0).write(0, &[1; 100]).code, StatusCode::IoError);
    daemon.signal(Signal::TERM);
    daemon.wait_log("the device failed");
    assert_eq!(daemon.wait().code(), Some(1));
}

/// What was lost stays lost, so a flush must not end well.
#[test]
fn d3_a_storage_that_has_failed_has_failed_for_the_next_worker() {
    for kind in ["file", "block"] {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = directory.path().join("memory");
        let storage = format!("{kind}:{}", file.display());
        let args = ["--size", "1M", "--queues", "1", "--storage", &storage];
        let daemon = start(&[&args[..], &["--keep-running"]].concat());
        let mut vmm = Vmm::start(daemon.socket(), 1);
        assert_eq!(vmm.io(0).write(0, &[1; 4096]).code, StatusCode::Ok);
        fs::write(&file, "").unwrap();
        assert_eq!(
            vmm.io(0).read(0, 4096).0.code,
            StatusCode::IoError,
            "{kind}"
        );
        assert_eq!(vmm.io(0).command(Opcode::Flush).code, StatusCode::IoError);
        // It looks whole again.
        fs::write(&file, [0; 1 << 20]).unwrap();
        for _ in 0..2 {
            kill(&daemon);
            assert_eq!(vmm.io(0).command(Opcode::Flush).code, StatusCode::IoError);
            assert_eq!(vmm.io(0).write(0, &[1; 4096]).code, StatusCode::IoError);
        }
        // Nor does the next connection.
        drop(vmm);
        let mut vmm = Vmm::start(daemon.socket(), 1);
        assert_eq!(vmm.io(0).command(Opcode::Flush).code, StatusCode::IoError);
    }
}

/// It may get its own signal before it can catch one.
#[test]
fn d3_a_signal_ends_a_device_whose_worker_has_just_started() {
    for _ in 0..20 {
        let daemon = start(&["--size", "1M", "--queues", "1"]);
        kill(&daemon);
        daemon.signal(Signal::TERM);
        daemon.assert_ended_well();
    }
}

#[test]
fn d3_a_worker_that_is_asked_to_end_ends_the_device() {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control");
    let path = control.to_str().unwrap();
    for (is_connected, by_signal) in [(false, false), (true, false), (true, true)] {
        let daemon = start(&["--size", "1M", "--queues", "1", "--control-socket", path]);
        let mut vmm = is_connected.then(|| Vmm::start(daemon.socket(), 1));
        if let Some(vmm) = &mut vmm {
            kill(&daemon);
            assert_eq!(vmm.io(0).write(0, &[1; 100]).code, StatusCode::Ok);
        }
        match by_signal {
            true => kill_process(worker(&daemon, None), Signal::TERM).unwrap(),
            false => assert_eq!(
                ask(&control, r#"{"execute": "shutdown"}"#),
                "{\"return\":{}}\n"
            ),
        }
        daemon.assert_clean_exit();
        assert!(!control.exists());
    }
}

/// The reply meets a connection that is closed.
#[test]
fn d3_a_client_that_does_not_wait_for_the_reply_ends_the_device() {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control");
    let path = control.to_str().unwrap();
    for supervise in ["off", "on"] {
        let args = ["--supervise", supervise, "--control-socket", path];
        let daemon = Daemon::start(&[&args[..], &["--size", "1M", "--queues", "1"]].concat());
        let mut client = UnixStream::connect(&control).unwrap();
        writeln!(client, r#"{{"execute": "shutdown"}}"#).unwrap();
        drop(client);
        daemon.assert_clean_exit();
    }
}

/// The worker is about to end for another reason, and so its end does not tell.
#[test]
fn d3_a_request_to_end_outlasts_an_upgrade() {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control");
    let path = control.to_str().unwrap();
    let mut daemon = start(&["--size", "1M", "--queues", "1", "--control-socket", path]);
    // A worker that ends before it has read the request closes the connection.
    for _ in 0..100 {
        let mut client = BufReader::new(UnixStream::connect(&control).unwrap());
        let mut line = String::new();
        writeln!(client.get_mut(), r#"{{"execute": "query-faults"}}"#).unwrap();
        client.read_line(&mut line).unwrap();
        // So this is the worker, and a thread of it waits for the next request.
        let pid = worker(&daemon, None);
        kill_process(pid, Signal::STOP).unwrap();
        daemon.signal(Signal::HUP);
        daemon.wait_log("upgrade: replacing the worker");
        writeln!(client.get_mut(), r#"{{"execute": "shutdown"}}"#).unwrap();
        kill_process(pid, Signal::CONT).unwrap();
        line.clear();
        // Fails where the worker has left the request unread.
        let _ = client.read_line(&mut line);
        if line == "{\"return\":{}}\n" {
            daemon.assert_clean_exit();
            return;
        }
        // The worker may also end between what it says to the supervisor and its reply.
        if !daemon.logs_before_end("upgrade done") {
            daemon.assert_ended_well();
            return;
        }
    }
    panic!("no worker has replied before its end");
}

#[test]
fn d3_a_device_that_cannot_start_is_no_crash() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    let args = [
        "--supervise",
        "on",
        "--storage",
        "file:/nonexistent/x",
        "--size",
        "1M",
    ];
    let output = process::command(&socket, &args).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("/nonexistent/x"), "{log}");
    assert!(log.contains("the device did not start"), "{log}");
    assert!(!socket.exists());
}

/// A copy of the program that can be replaced.
fn install(directory: &Path, program: &Path) {
    let new = directory.join("new");
    fs::copy(program, &new).unwrap();
    fs::rename(new, directory.join("ringbar-device")).unwrap();
}

#[test]
fn d3_the_installed_program_takes_over_under_load() {
    let directory = TempDir::new().unwrap();
    let this = Path::new(env!("CARGO_BIN_EXE_ringbar-device"));
    install(directory.path(), this);
    let installed = directory.path().join("ringbar-device");
    let socket = directory.path().join("socket");
    let args = ["--supervise", "on", "--size", "16M", "--queues", "1"];
    let command = process::command_of(&installed, &socket, &args);
    let mut daemon = Daemon::spawn(directory, socket, command);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let load = Load::start(vmm.queues.remove(2), 0);

    let runs = |pid: Pid| fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).unwrap();
    let before = worker(&daemon, None);
    assert_eq!(runs(before), installed);
    install(daemon.directory(), this);
    daemon.signal(Signal::HUP);
    daemon.wait_log("upgrade done");
    load.wait_round();
    let after = worker(&daemon, Some(before));
    assert_eq!(runs(after), installed);

    // A program that does not work is replaced by the former, which is not installed any more.
    install(daemon.directory(), Path::new("/bin/false"));
    daemon.signal(Signal::HUP);
    daemon.wait_log("back to the former");
    load.wait_round();
    let after = worker(&daemon, Some(after));
    assert!(runs(after).to_str().unwrap().ends_with(" (deleted)"));
    kill(&daemon);
    load.wait_round();
    load.finish();
    drop(vmm);
    daemon.assert_clean_exit();
}

#[test]
fn d3_signals_and_hang_ups_end_both_processes() {
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let pid = worker(&daemon, None);
    daemon.signal(Signal::TERM);
    daemon.assert_clean_exit();
    assert!(!Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists());

    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).code, StatusCode::Ok);
    daemon.signal(Signal::INT);
    daemon.assert_clean_exit();

    // A worker does not outlive its supervisor.
    let daemon = start(&["--size", "1M", "--queues", "1"]);
    let pid = worker(&daemon, None);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    daemon.signal(Signal::KILL);
    let mut fds = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    let timeout = rustix::event::Timespec {
        tv_sec: TEST_TIMEOUT.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1);
}
