// SPDX-License-Identifier: Apache-2.0 OR MIT

use std::env;
use std::ffi::c_long;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::process::{Command, Output};
use std::ptr::null;
use std::thread;

use ringbar_sandbox::EXIT_FORBIDDEN;

use super::*;

/// The sandbox of a device without threads of its own, as every card has it.
fn prepare() -> Confinement {
    Confinement::new(SandboxMode::On, "device", Kinds::default()).unwrap()
}

#[test]
fn the_directory_of_a_socket() {
    for (socket, expected) in [("/run/x/socket", "/run/x"), ("socket", "."), ("/s", "/")] {
        assert_eq!(directory(Path::new(socket)), Path::new(expected));
    }
}

/// Says to [`in_a_process_of_its_own`] what to do, as the kind of thread and the action.
const CASE: &str = "RINGBAR_TEST_SANDBOX_CASE";

/// Restricts a thread of another process as one of this kind, and does something there.
fn run(kind: &str, action: &str) -> Output {
    run_program(&env::current_exe().unwrap(), kind, action)
}

/// The same with another copy of this program.
fn run_program(program: &Path, kind: &str, action: &str) -> Output {
    Command::new(program)
        .args([
            "--exact",
            "sandbox::tests::in_a_process_of_its_own",
            "--nocapture",
        ])
        .env(CASE, format!("{kind} {action}"))
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

#[test]
fn in_a_process_of_its_own() {
    let Ok(case) = env::var(CASE) else {
        return;
    };
    let (kind, action) = case.split_once(' ').unwrap();
    let confinement = prepare();
    confinement.restrict_early(kind).unwrap();
    act(action);
}

/// What a restricted thread does.
fn act(action: &str) {
    let path = c"/etc/passwd".as_ptr();
    let call = |number: Sysno, arguments: [c_long; 4]| {
        let [a, b, c, d] = arguments;
        // SAFETY: No argument refers to memory but the path, which lives as long as the program,
        // and a mapping of new memory.
        unsafe { libc::syscall(c_long::from(number.id()), a, b, c, d, -1, 0) }
    };
    match action {
        "execve" => call(Sysno::execve, [path as c_long, 0, 0, 0]),
        "socket" => call(Sysno::socket, [libc::AF_UNIX.into(), 1, 0, 0]),
        "io_uring_setup" => call(Sysno::io_uring_setup, [1, 0, 0, 0]),
        "openat" => {
            let flags = libc::O_WRONLY | libc::O_CLOEXEC;
            let directory = libc::AT_FDCWD.into();
            call(Sysno::openat, [directory, path as c_long, flags.into(), 0])
        }
        "mmap" => {
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            call(Sysno::mmap, [0, 4096, protection.into(), flags.into()])
        }
        // As fork(2) does.
        "clone" => {
            let process = call(Sysno::clone, [libc::SIGCHLD.into(), 0, 0, 0]);
            let error = io::Error::last_os_error().raw_os_error();
            assert_eq!((process, error), (-1, Some(libc::EPERM)));
            0
        }
        "process" => match Command::new("/bin/true").spawn() {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => 0,
            other => panic!("{other:?}"),
        },
        "thread" => match thread::Builder::new().spawn(|| println!("it runs")) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => 0,
            Err(error) => panic!("{error}"),
            Ok(thread) => {
                thread.join().unwrap();
                0
            }
        },
        "read" => match std::fs::read("/etc/passwd") {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => 0,
            other => panic!("{other:?}"),
        },
        "panic" => {
            catch_unwind(|| panic!("deliberately")).unwrap_err();
            0
        }
        // What the rest of the library and its threads need.
        "work" => {
            let numbers: Vec<u8> = vec![1; 4 << 20];
            assert_eq!(
                numbers.iter().map(|number| u64::from(*number)).sum::<u64>(),
                4 << 20
            );
            thread::sleep(std::time::Duration::from_millis(1));
            assert!(std::collections::HashSet::from([1, 2]).contains(&2));
            0
        }
        other => unreachable!("{other}"),
    };
    println!("went on after {action}");
}

#[test]
fn a_forbidden_call_ends_the_process_with_a_line() {
    for kind in Kinds::default().all() {
        for call in ["execve", "socket", "io_uring_setup", "openat", "mmap"] {
            let kind = kind.name();
            let output = run(kind, call);
            let (stdout, stderr) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            let status = output.status;
            assert_eq!(
                status.code(),
                Some(EXIT_FORBIDDEN.into()),
                "{kind} {call}: {status} {stderr}"
            );
            assert!(!stdout.contains("went on"), "{kind} {call}: {stdout}");
            let expected = format!("device: sandbox: forbidden system call {call} (");
            let line = stderr.lines().find(|line| line.starts_with(&expected));
            let line = line.unwrap_or_else(|| panic!("{kind} {call}: {stderr}"));
            for part in [
                &format!("by a thread of the kind {kind};"),
                "report",
                "--sandbox log or off",
            ] {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
    }
}

#[test]
fn what_ends_no_kind() {
    for kind in Kinds::default().all() {
        for action in ["read", "work", "clone", "process", "thread"] {
            let output = run(kind.name(), action);
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert!(
                stdout.contains(&format!("went on after {action}")),
                "{}: {output:?}",
                kind.name()
            );
            assert!(output.status.success(), "{}: {output:?}", kind.name());
            let starts = kind.calls().contains(&SPAWN[0]);
            let runs = stdout.contains("it runs");
            assert_eq!(runs, action == "thread" && starts, "{}", kind.name());
        }
    }
}

#[test]
fn a_panic_has_its_message_and_its_back_trace() {
    let reads_executable = files_can_be_restricted();
    for kind in Kinds::default().all() {
        let output = run(kind.name(), "panic");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let kind = kind.name();
        assert!(output.status.success(), "{kind}: {output:?}");
        assert!(stderr.contains("deliberately"), "{kind}: {stderr}");
        assert!(stderr.contains("stack backtrace:"), "{kind}: {stderr}");
        // Without landlock nothing can be opened, not even the executable.
        let named = stderr.contains("sandbox::tests::act");
        assert_eq!(named, reads_executable, "{kind}: {stderr}");
    }
}

/// Its executable cannot be opened by a path, so no rule can allow it.
#[test]
fn a_program_in_memory_is_restricted_too() {
    // SAFETY: The name is a string that ends with 0.
    let memory = unsafe { libc::memfd_create(c"program".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(memory >= 0, "{}", io::Error::last_os_error());
    // SAFETY: A new descriptor, which belongs to nobody else.
    let memory = unsafe { OwnedFd::from_raw_fd(memory) };
    let mut program = File::open(env::current_exe().unwrap()).unwrap();
    let mut copy = File::from(memory.try_clone().unwrap());
    io::copy(&mut program, &mut copy).unwrap();
    drop(copy);
    let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    for action in ["read", "panic"] {
        let output = run_program(Path::new(&path), MAIN, action);
        assert!(output.status.success(), "{output:?}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("went on after"), "{stdout}");
    }
}

/// Directories of [`removes_files`], as `allowed:other`.
const DIRECTORIES: &str = "RINGBAR_TEST_SANDBOX_DIRECTORIES";

#[test]
fn files_can_be_removed_where_the_sockets_are_only() {
    let (allowed, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for directory in [&allowed, &other] {
        std::fs::write(directory.path().join("file"), "").unwrap();
    }
    let (allowed, other) = (allowed.path(), other.path());
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::removes_files", "--nocapture"])
        .env(
            DIRECTORIES,
            format!("{}:{}", allowed.display(), other.display()),
        )
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!allowed.join("file").exists());
    assert_eq!(other.join("file").exists(), files_can_be_restricted());
}

#[test]
fn removes_files() {
    let Ok(directories) = env::var(DIRECTORIES) else {
        return;
    };
    let (allowed, other) = directories.split_once(':').unwrap();
    let confinement = prepare();
    let files = Files {
        remove_in: vec![allowed.into()],
    };
    confinement.restrict_first(MAIN, &files).unwrap();
    // No right to read comes with the right to remove.
    let read = std::fs::read(Path::new(allowed).join("file"));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EACCES));
    std::fs::remove_file(Path::new(allowed).join("file")).unwrap();
    // Its success depends on the kernel; the parent knows.
    let _ = std::fs::remove_file(Path::new(other).join("file"));
}

/// Whether this kernel has landlock.
fn files_can_be_restricted() -> bool {
    // SAFETY: Asks for the version (LANDLOCK_CREATE_RULESET_VERSION), and refers to no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null::<u8>(), 0, 1) };
    if version <= 0 {
        eprintln!("this kernel has no landlock: only the refusal to open files is tested");
    }
    version > 0
}

#[test]
fn a_signal_from_a_process_ends_it_too() {
    // Not by a filter: nothing can be said of a call.
    let output = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "sandbox::tests::sends_itself_the_signal",
            "--nocapture",
        ])
        .env(CASE, "signal")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(EXIT_FORBIDDEN.into()),
        "{output:?}"
    );
    assert_eq!(output.status.signal(), None);
    assert!(stderr.contains("SIGSYS from a process"), "{stderr}");
}

#[test]
fn sends_itself_the_signal() {
    if env::var(CASE).as_deref() == Ok("signal") {
        let _confinement = prepare();
        // SAFETY: No memory is involved.
        unsafe { libc::raise(libc::SIGSYS) };
        unreachable!();
    }
}

#[test]
fn a_thread_without_rules_ends_the_process_with_a_line() {
    let output = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "sandbox::tests::starts_a_thread_without_rules",
            "--nocapture",
        ])
        .env(CASE, "unknown")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(EXIT_FORBIDDEN.into()),
        "{output:?}"
    );
    let expected = "device: sandbox: cannot restrict a thread (unheard-of): there are no rules for \
                    threads of the kind \"unheard-of\"; the process ends.";
    assert!(
        stderr.lines().any(|line| line.starts_with(expected)),
        "{stderr}"
    );
    assert!(!stdout.contains("it runs"), "{stdout}");
}

#[test]
fn starts_a_thread_without_rules() {
    if env::var(CASE).as_deref() == Ok("unknown") {
        let confinement = prepare();
        confinement.restrict_early(MAIN).unwrap();
        let thread = confinement.threads().spawn("mapper", || 7);
        assert_eq!(thread.unwrap().join().unwrap(), 7);
        let thread = confinement
            .threads()
            .spawn("unheard-of", || println!("it runs"));
        let _ = thread.unwrap().join();
        println!("it runs on");
    }
}
