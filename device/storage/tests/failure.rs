// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Storages whose disk fails.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use libc::{SYS_fallocate, SYS_fdatasync, SYS_msync};
use ringbar_storage::FileStorage;
use ringbar_storage::MemoryStorage;
use ringbar_storage::Storage;
use ringbar_storage::{ErrorKind, StorageError, StorageFailure};
use rustix::io::Errno;
use support::seccomp::with_failing;
use support::{CAPACITY, WRITING, assert_lost, open, read, status, write};
use tempfile::TempDir;

#[test]
fn ho8_a_truncated_file_is_an_error() {
    for length in [0, 4096, CAPACITY - 5000] {
        let directory = TempDir::new().unwrap();
        let storage = open(directory.path());
        write(&storage, 0, &vec![7; CAPACITY as usize]).unwrap();
        let path = directory.path().join("disk");
        let cut = fs::OpenOptions::new().write(true).open(&path).unwrap();
        cut.set_len(length).unwrap();
        assert_eq!(status(read(&storage, CAPACITY - 1, 1)), Some(ErrorKind::Io));
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
        assert_eq!(status(operation(&storage)), Some(ErrorKind::Io), "{name}");
        assert_lost(&storage, "truncated");
    }
    // Where something was discarded, a read takes another way.
    let directory = TempDir::new().unwrap();
    let storage = open(directory.path());
    storage.discard(0, CAPACITY).unwrap();
    assert_eq!(read(&storage, 0, 10).unwrap(), [0; 10]);
    fs::write(directory.path().join("disk"), "").unwrap();
    assert_eq!(status(read(&storage, 0, 10)), Some(ErrorKind::Io));
    assert_lost(&storage, "truncated");
}

#[test]
fn ho7_an_error_of_writing_back_is_told_to_every_flush() {
    for (call, errno, code) in [
        (SYS_fdatasync, Errno::IO, Some(ErrorKind::Io)),
        (SYS_msync, Errno::IO, Some(ErrorKind::Io)),
        (SYS_fdatasync, Errno::NOSPC, Some(ErrorKind::NoSpace)),
        (SYS_msync, Errno::DQUOT, Some(ErrorKind::NoSpace)),
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
        let failure = storage.failure().unwrap().reason;
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

/// XFS frees the blocks of a range before it allocates others and finds no space.
#[test]
fn ho9_zeroing_that_fails_may_have_given_up_blocks() {
    let directory = TempDir::new().unwrap();
    let storage = open(directory.path());
    let failed = with_failing(&[SYS_fallocate], Errno::NOSPC, || {
        storage.write_zeroes(100_000, 200_000)
    });
    assert_eq!(status(failed), Some(ErrorKind::NoSpace));
    let write_at = |offset| {
        with_failing(&[SYS_fallocate], Errno::NOSPC, || {
            status(write(&storage, offset, &[7; 4096]))
        })
    };
    assert_eq!(write_at(150_000), Some(ErrorKind::NoSpace));
    assert_eq!(write_at(500_000), None);
    write(&storage, 150_000, &[7; 4096]).unwrap();
    assert_eq!(write_at(150_000), None);
    assert_eq!(storage.failure(), None);
}

#[test]
fn memory_has_no_failure() {
    let storage = MemoryStorage::new(CAPACITY).unwrap();
    for (name, operation) in WRITING {
        assert_eq!(status(operation(&storage)), None, "{name}");
    }
    assert_eq!(storage.failure(), None);
}

/// The next process has the same file, and not what the first one knew about it.
#[test]
fn the_next_process_knows_of_the_failure_and_of_the_holes() {
    let directory = support::directory_on_disk();
    let path = directory.path().join("disk");
    let adopt = |storage: &FileStorage, failure| {
        let file = storage.mappable().unwrap().file.try_clone().unwrap();
        FileStorage::adopt(file, &path, CAPACITY, failure).unwrap()
    };
    let blocks = || fs::metadata(&path).unwrap().blocks();
    let first = open(directory.path());
    write(&first, 0, &vec![7; CAPACITY as usize]).unwrap();
    first.flush().unwrap();
    let full = blocks();
    first.discard(256 << 10, 256 << 10).unwrap();
    let sparse = blocks();
    assert!(sparse < full, "the file system keeps what was discarded");

    let next = adopt(&first, None);
    assert_eq!(blocks(), sparse);
    assert_eq!(next.failure(), None);
    let write_without_allocating = |offset| {
        with_failing(&[SYS_fallocate], Errno::NOSPC, || {
            status(write(&next, offset, &[8; 4096]))
        })
    };
    assert_eq!(
        write_without_allocating(300 << 10),
        Some(ErrorKind::NoSpace)
    );
    assert_eq!(write_without_allocating(100 << 10), None);
    assert_eq!(write_without_allocating(600 << 10), None);
    write(&next, 300 << 10, &[9; 4096]).unwrap();
    assert_eq!(read(&next, 300 << 10, 4096).unwrap(), [9; 4096]);

    for kind in [ErrorKind::Io, ErrorKind::NoSpace] {
        let reason = "it was lost".to_owned();
        let failure = Some(StorageFailure { reason, kind });
        let next = adopt(&next, failure.clone());
        for (name, operation) in WRITING {
            assert_eq!(status(operation(&next)), Some(kind), "{name}");
        }
        assert_eq!(next.failure(), failure);
        assert_eq!(read(&next, 0, 10).unwrap(), [7; 10]);
    }
}

#[test]
fn memory_that_was_lost_is_lost_in_the_next_process() {
    let first = MemoryStorage::new(CAPACITY).unwrap();
    write(&first, 0, &[7; 10]).unwrap();
    let failure = StorageFailure {
        reason: "pages are missing".to_owned(),
        kind: ErrorKind::Io,
    };
    let adopt = |failure| {
        let file = first.mappable().unwrap().file.try_clone().unwrap();
        MemoryStorage::adopt(file, CAPACITY, None, failure).unwrap()
    };
    let next = adopt(Some(failure.clone()));
    let operations: [&dyn Fn() -> Result<(), StorageError>; 5] = [
        &|| write(&next, 0, &[8; 10]),
        &|| next.discard(0, 8192),
        &|| next.write_zeroes(0, 10),
        &|| next.flush(),
        &|| next.flush_range(0, 10),
    ];
    for (number, operation) in operations.iter().enumerate() {
        assert_eq!(status(operation()), Some(ErrorKind::Io), "{number}");
    }
    assert_eq!(next.failure(), Some(failure));
    // What is there can be rescued.
    assert_eq!(read(&next, 0, 10).unwrap(), [7; 10]);
    let next = adopt(None);
    assert_eq!((next.failure(), status(next.flush())), (None, None));
}
