// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Storages whose disk fails.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use libc::{SYS_fallocate, SYS_fdatasync, SYS_msync};
use ringbar_model::{Storage, StorageError};
use ringbar_spec::StatusCode;
use ringbar_storage::{FileStorage, MemoryStorage};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use support::seccomp::with_failing;
use support::{WRITING, read, write};
use tempfile::TempDir;

/// Not a multiple of a page.
const CAPACITY: u64 = 1_000_001;

fn open(directory: &Path) -> FileStorage {
    FileStorage::open(&directory.join("disk"), Some(CAPACITY)).unwrap()
}

fn status<T>(result: Result<T, StorageError>) -> StatusCode {
    result.err().map_or(StatusCode::Ok, |error| error.status())
}

/// Asserts that nothing works any more, for good, and that there is a reason.
#[track_caller]
fn assert_lost(storage: &FileStorage, reason: &str) {
    for _ in 0..2 {
        for (name, operation) in WRITING {
            assert_eq!(status(operation(storage)), StatusCode::IoError, "{name}");
        }
        for offset in [0, CAPACITY - 1] {
            assert_eq!(status(read(storage, offset, 1)), StatusCode::IoError);
        }
    }
    let failure = storage.failure().unwrap();
    assert!(failure.contains(reason), "{failure}");
    // Whoever maps it would be killed.
    assert!(storage.mappable().is_none());
    storage.resize(2 * CAPACITY).unwrap_err();
    storage.resize(10).unwrap_err();
    assert_eq!(storage.capacity(), CAPACITY);
    // A range outside is still that.
    assert_eq!(status(read(storage, CAPACITY, 1)), StatusCode::OutOfRange);
}

#[test]
fn ho8_a_truncated_file_is_an_error() {
    for length in [0, 4096, CAPACITY - 5000] {
        let directory = TempDir::new().unwrap();
        let storage = open(directory.path());
        write(&storage, 0, &vec![7; CAPACITY as usize]).unwrap();
        let path = directory.path().join("disk");
        let cut = fs::OpenOptions::new().write(true).open(&path).unwrap();
        cut.set_len(length).unwrap();
        assert_eq!(status(read(&storage, CAPACITY - 1, 1)), StatusCode::IoError);
        assert_lost(&storage, "truncated");
        // It is the memory that is lost, and not for the next process.
        cut.set_len(CAPACITY).unwrap();
        assert_lost(&storage, "truncated");
        drop(storage);
        let storage = open(directory.path());
        assert_eq!(storage.failure(), None);
        write(&storage, 0, &[1]).unwrap();
    }
}

/// Each operation is the first to meet it.
#[test]
fn ho8_every_operation_meets_a_truncated_file() {
    for (name, operation) in WRITING {
        let directory = TempDir::new().unwrap();
        let storage = open(directory.path());
        fs::write(directory.path().join("disk"), "").unwrap();
        assert_eq!(status(operation(&storage)), StatusCode::IoError, "{name}");
        assert_lost(&storage, "truncated");
    }
    // Where something was discarded, a read takes another way.
    let directory = TempDir::new().unwrap();
    let storage = open(directory.path());
    storage.discard(0, CAPACITY).unwrap();
    assert_eq!(read(&storage, 0, 10).unwrap(), [0; 10]);
    fs::write(directory.path().join("disk"), "").unwrap();
    assert_eq!(status(read(&storage, 0, 10)), StatusCode::IoError);
    assert_lost(&storage, "truncated");
}

/// Runs the test of this name again as the owner of a file system of 4 MiB in memory,
/// mounted at `/mnt` for it alone; returns whether this is that run.
fn on_a_small_file_system(test: &str) -> bool {
    const INSIDE: &str = "RINGBAR_TEST_SMALL_FILE_SYSTEM";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // Root may make mounts without a user namespace, and perhaps only so.
    let mount = "mount -t tmpfs -o size=4m none /mnt && exec \"$0\" --exact \"$1\" --nocapture";
    let run = |namespace: &[&str]| {
        Command::new("unshare")
            .args(namespace)
            .args(["--", "sh", "-c", mount])
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env(INSIDE, "1")
            .output()
            .unwrap()
    };
    let ran = |text: &[u8]| String::from_utf8_lossy(text).contains("test result:");
    let mut output = run(&["--mount"]);
    if !ran(&output.stdout) {
        output = run(&["--map-root-user", "--mount"]);
    }
    assert!(
        output.status.success(),
        "{test} on a small file system (this needs the right to mount one, as root or in a \
         user namespace): {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    false
}

/// Takes all space that is left in a directory.
fn fill(directory: &Path) {
    let mut rest = 1 << 20;
    for number in 0.. {
        let file = fs::File::create(directory.join(format!("filler-{number}"))).unwrap();
        while rest >= 4096 && fallocate(&file, FallocateFlags::empty(), 0, rest).is_err() {
            rest /= 2;
        }
        if rest < 4096 {
            return;
        }
    }
}

/// A page is missing behind our back, and there is no space for it: that is what happens
/// on a copy-on-write file system that is full.
#[test]
fn ho8_a_page_that_the_file_system_has_no_space_for_is_an_error() {
    if !on_a_small_file_system("ho8_a_page_that_the_file_system_has_no_space_for_is_an_error") {
        return;
    }
    let directory = Path::new("/mnt");
    let storage = open(directory);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(storage.mappable().unwrap().file, punch, 0, 65536).unwrap();
    fill(directory);
    // What has its pages works.
    write(&storage, 65536, &[7; 5000]).unwrap();
    assert_eq!(read(&storage, 65536, 1).unwrap(), [7]);
    assert_eq!(status(write(&storage, 100, &[7])), StatusCode::IoError);
    assert_lost(&storage, "no space");
}

/// As far as we know of missing pages, a full file system is no more than an error of
/// the request, and reading needs no space.
#[test]
fn ho8_discarded_space_that_is_not_to_be_had_again_fails_the_request_alone() {
    if !on_a_small_file_system(
        "ho8_discarded_space_that_is_not_to_be_had_again_fails_the_request_alone",
    ) {
        return;
    }
    let directory = Path::new("/mnt");
    let storage = open(directory);
    write(&storage, 0, &vec![7; CAPACITY as usize]).unwrap();
    storage.discard(0, 300_000).unwrap();
    fill(directory);
    assert_eq!(status(write(&storage, 0, &[1])), StatusCode::NoSpace);
    assert_eq!(status(storage.write_zeroes(0, 5000)), StatusCode::NoSpace);
    assert_eq!(read(&storage, 0, 200_000).unwrap(), [0; 200_000]);
    assert_eq!(storage.failure(), None);
    write(&storage, 400_000, &[1; 100_000]).unwrap();
    storage.flush().unwrap();
    // A page becomes free, and a write takes it, but not what lies around.
    fs::write(directory.join("filler-0"), "").unwrap();
    write(&storage, 0, &[1]).unwrap();
    assert_eq!(read(&storage, 0, 2).unwrap(), [1, 0]);
}

#[test]
fn ho7_an_error_of_writing_back_is_told_to_every_flush() {
    for (call, errno, code) in [
        (SYS_fdatasync, Errno::IO, StatusCode::IoError),
        (SYS_msync, Errno::IO, StatusCode::IoError),
        (SYS_fdatasync, Errno::NOSPC, StatusCode::NoSpace),
        (SYS_msync, Errno::DQUOT, StatusCode::NoSpace),
    ] {
        let directory = TempDir::new().unwrap();
        let storage = open(directory.path());
        write(&storage, 0, &[7; 10_000]).unwrap();
        storage.flush().unwrap();
        storage.flush_range(0, 10).unwrap();
        assert_eq!(storage.failure(), None);

        let first = with_failing(&[call], errno, || {
            if call == SYS_msync {
                storage.flush_range(100, 10)
            } else {
                storage.flush()
            }
        });
        assert_eq!(status(first), code);
        // The disk is well again, but what was lost is not known.
        for _ in 0..2 {
            for (name, operation) in WRITING {
                assert_eq!(status(operation(&storage)), code, "{name}");
            }
            assert_eq!(status(storage.flush_range(0, 0)), code);
        }
        let failure = storage.failure().unwrap();
        let cause = std::io::Error::from(errno).to_string();
        assert!(failure.contains("could not be written back"), "{failure}");
        assert!(failure.ends_with(&cause), "{failure}");
        // What can be read can be saved.
        assert_eq!(read(&storage, 0, 10_000).unwrap(), [7; 10_000]);

        drop(storage);
        let storage = open(directory.path());
        storage.flush().unwrap();
        write(&storage, 0, &[1]).unwrap();
    }
}

/// Without time: a write that makes no call to allocate costs what it cost before.
#[test]
fn ho9_a_discard_is_paid_for_once_and_only_where_it_was() {
    let directory = TempDir::new().unwrap();
    let storage = open(directory.path());
    let (hole, elsewhere) = (500_000, 100_000);
    storage.discard(hole, 100_000).unwrap();
    let writes_without_allocating = |offset| {
        with_failing(&[SYS_fallocate], Errno::PERM, || {
            write(&storage, offset, &[7; 4096]).is_ok()
        })
    };
    for _ in 0..3 {
        assert!(writes_without_allocating(elsewhere));
        assert!(writes_without_allocating(hole + 200_000));
        assert!(!writes_without_allocating(hole), "nothing was discarded");
    }
    write(&storage, hole, &[7; 4096]).unwrap();
    for at in [hole, hole + 4096, hole + 8192] {
        assert!(writes_without_allocating(at));
    }
    storage.write_zeroes(0, CAPACITY).unwrap();
    assert!(writes_without_allocating(hole + 90_000));
}

#[test]
fn memory_has_no_failure() {
    let storage = MemoryStorage::new(CAPACITY).unwrap();
    for (name, operation) in WRITING {
        assert_eq!(status(operation(&storage)), StatusCode::Ok, "{name}");
    }
    assert_eq!(storage.failure(), None);
}
