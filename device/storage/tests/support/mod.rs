// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the tests of several subjects need.

// Not every test program uses all of it.
#![allow(dead_code)]

pub mod seccomp;

use std::path::Path;

use ringbar_storage::FileStorage;
use ringbar_storage::{ErrorKind, Storage, StorageError};
use tempfile::TempDir;
use vm_memory::VolatileSlice;

/// A directory in the build folder, which is on a disk, unlike perhaps the one for
/// temporary files.
pub fn directory_on_disk() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn write(storage: &dyn Storage, offset: u64, data: &[u8]) -> Result<(), StorageError> {
    let mut data = data.to_vec();
    storage.write(offset, VolatileSlice::from(&mut data[..]))
}

pub fn read(storage: &dyn Storage, offset: u64, length: usize) -> Result<Vec<u8>, StorageError> {
    let mut data = vec![0xee; length];
    storage
        .read(offset, VolatileSlice::from(&mut data[..]))
        .map(|()| data)
}

pub type Operation = fn(&dyn Storage) -> Result<(), StorageError>;

/// Each operation but for reads and resizes, on the first bytes.
pub const WRITING: [(&str, Operation); 5] = [
    ("write", |storage| write(storage, 5, &[7; 5000])),
    ("discard", |storage| storage.discard(5, 5000)),
    ("write zeroes", |storage| storage.write_zeroes(5, 5000)),
    ("flush", |storage| storage.flush()),
    ("flush a range", |storage| storage.flush_range(5, 5000)),
];

/// Bytes of a storage that [`open`] makes. Not a multiple of a page.
pub const CAPACITY: u64 = 1_000_001;

pub fn open(directory: &Path) -> FileStorage {
    FileStorage::open(&directory.join("disk"), Some(CAPACITY)).unwrap()
}

pub fn status<T>(result: Result<T, StorageError>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// Asserts that nothing works any more, for good, and that there is a reason.
#[track_caller]
pub fn assert_lost(storage: &FileStorage, reason: &str) {
    for _ in 0..2 {
        for (name, operation) in WRITING {
            assert_eq!(status(operation(storage)), Some(ErrorKind::Io), "{name}");
        }
        for offset in [0, CAPACITY - 1] {
            assert_eq!(status(read(storage, offset, 1)), Some(ErrorKind::Io));
        }
    }
    let failure = storage.failure().unwrap().reason;
    assert!(failure.contains(reason), "{failure}");
    // Whoever maps it would be killed.
    assert!(storage.mappable().is_none());
    storage.resize(2 * CAPACITY).unwrap_err();
    storage.resize(10).unwrap_err();
    assert_eq!(storage.capacity(), CAPACITY);
    // A range outside is still that.
    assert_eq!(
        status(read(storage, CAPACITY, 1)),
        Some(ErrorKind::OutOfRange)
    );
}
