// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The restrictions of the process, as the kernel reports them for each thread.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use ringbar_spec::Opcode;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use tempfile::TempDir;
use vfio_user::Client;

use crate::support::{Daemon, Vmm, pattern, process, wait_until};

/// What the kernel says of a thread that is restricted by a filter.
const FILTERED: &str = "2";

/// Name of the main thread.
const MAIN: &str = "ringbar-device";

/// Threads that are older than the restriction of the main thread, and those that the kernel starts
/// for one of them (`iou-wrk-` and its number).
const EARLY: &[&str] = &["log", "block-io", "iou-wrk-"];

/// Asserts that a daemon has the threads `names`, among others, that each thread is restricted, and
/// that each thread has restricted itself: a thread begins with the filters of the one that starts
/// it, which have to be fewer.
#[track_caller]
fn assert_restricted(daemon: &Daemon, names: &[&str]) {
    assert_threads(daemon, names, |threads| {
        let filters =
            |thread: &process::Thread| -> u32 { thread.field("Seccomp_filters").parse().unwrap() };
        let main = threads.iter().find(|thread| thread.name == MAIN);
        let main = filters(main.expect("there is a main thread"));
        let inherited = filters(&process::Thread::own());
        let has_own = |thread: &&process::Thread| match thread.name.as_str() {
            name if name == MAIN || EARLY.iter().any(|early| name.starts_with(early)) => {
                filters(thread) > inherited
            }
            _ => filters(thread) > main,
        };
        let without = threads.iter().filter(|thread| !has_own(thread));
        without.map(|thread| thread.name.clone()).collect()
    });
}

/// Asserts that a daemon has the threads `names`, among others, and that each thread is restricted.
/// `check` gives the names of those that are not, besides those without any restriction.
#[track_caller]
fn assert_threads(
    daemon: &Daemon,
    names: &[&str],
    check: impl Fn(&[process::Thread]) -> Vec<String>,
) {
    // A thread that has just started is not restricted yet.
    wait_until(|| {
        let threads = daemon.threads();
        let found: BTreeSet<_> = threads.iter().map(|thread| thread.name.as_str()).collect();
        let missing: Vec<_> = names.iter().filter(|name| !found.contains(*name)).collect();
        let free = threads.iter().filter(|thread| {
            thread.field("Seccomp") != FILTERED
                || thread.field("NoNewPrivs") != "1"
                || ["CapEff", "CapPrm", "CapInh", "CapAmb"]
                    .iter()
                    .any(|set| !thread.field(set).trim_matches('0').is_empty())
        });
        let mut free: Vec<_> = free.map(|thread| thread.name.clone()).collect();
        free.extend(check(&threads));
        match missing.is_empty() && free.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "missing: {missing:?}, not restricted: {free:?}, found: {found:?}"
            )),
        }
    });
}

fn query(control: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(control).unwrap();
    stream
        .write_all(b"{\"execute\": \"query-device\"}\n")
        .unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.contains("return"), "{line}");
    stream
}

#[test]
fn all_threads_are_restricted_over_vhost_user() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let control = directory.path().join("control");
    let storage = format!("block:{}", directory.path().join("disk").display());
    let daemon = Daemon::start_in(
        directory,
        &[
            "--size",
            "1M",
            "--queues",
            "1",
            "--storage",
            &storage,
            "--control-socket",
            control.to_str().unwrap(),
            "--fault",
            "read:latency=1ms",
        ],
    );
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let data = pattern(5000, 1);
    vmm.io(0).write(100, &data);
    vmm.io(0).command(Opcode::Flush);
    assert!(vmm.io(0).read(100, 5000).1 == data);
    let client = query(&control);
    assert_restricted(
        &daemon,
        &[
            MAIN,
            "log",
            "block-io",
            "delayer",
            "flusher",
            "control",
            "control-client",
            "connection",
            "vhost-user",
            "mapper",
            "memory-watch",
            "queue-worker",
        ],
    );
    drop((client, vmm));
    let directory = daemon.assert_clean_exit();
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["disk"], "sockets or locks are left behind");
}

#[test]
fn all_threads_are_restricted_over_vfio_user() {
    let daemon = Daemon::start(&["--size", "1M", "--transport", "vfio-user"]);
    let mut client = Client::new(daemon.socket()).unwrap();
    let mut id = [0; 4];
    // The configuration space is region 7 (linux/vfio.h).
    client.region_read(7, 0, &mut id).unwrap();
    assert_eq!(u16::from_le_bytes([id[0], id[1]]), 0x1af4);
    assert_restricted(
        &daemon,
        &[
            MAIN,
            "log",
            "flusher",
            "vfio-user",
            "function-contro",
            "queue-worker",
        ],
    );
    drop(client);
    daemon.assert_clean_exit();
}

#[test]
fn without_the_sandbox_nothing_is_restricted() {
    let daemon = Daemon::start(&["--size", "1M", "--sandbox", "off"]);
    for thread in daemon.threads() {
        assert_eq!(thread.field("Seccomp"), own("Seccomp"), "{}", thread.name);
        assert_eq!(thread.field("NoNewPrivs"), own("NoNewPrivs"));
        assert_eq!(thread.field("CapEff"), own("CapEff"));
    }
    drop(UnixStream::connect(daemon.socket()).unwrap());
    daemon.assert_clean_exit();
}

/// A field of the status of this process.
fn own(field: &str) -> String {
    process::Thread::own().field(field).to_owned()
}

#[test]
fn a_mode_that_only_logs_works() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1", "--sandbox", "log"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).write(0, &[1; 100]).result, 100);
    assert_restricted(&daemon, &["queue-worker"]);
    drop(vmm);
    daemon.assert_clean_exit();
}

/// The command of a daemon for which these system calls do not exist, as on a kernel without a part
/// of the sandbox.
fn on_a_kernel_without(call: i64, socket: &Path, mode: &str) -> Command {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let rules = [(call, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    let mut command = process::command(socket, &["--size", "1M", "--queues", "1"]);
    command.args(["--sandbox", mode]);
    let restrict = move || apply_filter(&filter).map_err(std::io::Error::other);
    // SAFETY: After the fork it makes system calls only; the filter was made before.
    unsafe { command.pre_exec(restrict) };
    command
}

/// System calls without which a part of the sandbox is missing, and the part in messages.
const PARTS: &[(i64, &str)] = &[
    (libc::SYS_landlock_create_ruleset, "landlock"),
    (libc::SYS_seccomp, "seccomp filters"),
];

#[test]
fn a_sandbox_that_is_required_must_be_complete() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    for (call, part) in PARTS {
        let output = on_a_kernel_without(*call, &socket, "require")
            // A daemon that goes on ends here.
            .args(["--storage", "file:/dev/null"])
            .output()
            .unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        let expected = format!("ringbar-device: this kernel lacks {part}, which --sandbox require");
        assert!(log.starts_with(&expected), "{log}");
        assert!(!socket.exists());
    }
}

#[test]
fn a_sandbox_of_which_a_part_is_missing_has_the_other() {
    for (call, part) in PARTS {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("socket");
        let command = on_a_kernel_without(*call, &socket, "on");
        let daemon = Daemon::spawn(directory, socket, command);
        let mut vmm = Vmm::start(daemon.socket(), 1);
        assert_eq!(vmm.io(0).write(0, &[1; 100]).result, 100);
        match *call {
            libc::SYS_seccomp => assert_threads(&daemon, &["queue-worker"], |_| Vec::new()),
            _ => assert_restricted(&daemon, &["queue-worker"]),
        }
        let warning = format!("this kernel lacks {part}: the process restricts itself without it");
        assert!(
            daemon.seen().iter().any(|line| line.contains(&warning)),
            "{:#?}",
            daemon.seen()
        );
        drop(vmm);
        daemon.assert_clean_exit();
    }
}

/// Whether this kernel can restrict files.
pub fn has_landlock() -> bool {
    // SAFETY: Asks for the version (LANDLOCK_CREATE_RULESET_VERSION), and refers to no memory.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) > 0 }
}

#[test]
fn a_complete_sandbox_can_be_required() {
    if !has_landlock() {
        eprintln!("this kernel has no landlock, so the sandbox is not complete");
        return;
    }
    let daemon = Daemon::start(&["--size", "1M", "--sandbox", "require"]);
    assert_restricted(&daemon, &[MAIN, "log"]);
    drop(UnixStream::connect(daemon.socket()).unwrap());
    daemon.assert_clean_exit();
}

/// A failure that is no mistake in the arguments.
#[test]
fn a_log_that_cannot_be_restricted_is_a_failure() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    let mut command = on_a_kernel_without(libc::SYS_capset, &socket, "on");
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("cannot restrict a thread (log)"), "{log}");
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(!socket.exists());
}
