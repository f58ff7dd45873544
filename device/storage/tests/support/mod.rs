// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the tests of several subjects need.

// Not every test program uses all of it.
#![allow(dead_code)]

pub mod seccomp;

use ringbar_model::{Storage, StorageError};
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
