// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Storages that are given another size.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringbar_storage::{FileStorage, MemoryStorage};
use ringbar_storage::{Storage, StorageError};
use tempfile::TempDir;
use vm_memory::VolatileSlice;

/// Not a multiple of a page.
const SMALL: u64 = 10_000;
const LARGE: u64 = 3_000_001;

fn on_each(test: impl Fn(&dyn Storage)) {
    test(&MemoryStorage::new(SMALL).unwrap());
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    test(&FileStorage::open(&path, Some(SMALL)).unwrap());
}

fn write(storage: &dyn Storage, offset: u64, data: &[u8]) -> Result<(), StorageError> {
    let mut data = data.to_vec();
    storage.write(offset, VolatileSlice::from(&mut data[..]))
}

fn read(storage: &dyn Storage, offset: u64, length: usize) -> Result<Vec<u8>, StorageError> {
    let mut data = vec![0xee; length];
    storage
        .read(offset, VolatileSlice::from(&mut data[..]))
        .map(|()| data)
}

fn is_outside<T>(result: Result<T, StorageError>, capacity: u64) -> bool {
    matches!(result, Err(StorageError::OutOfRange { capacity: told, .. }) if told == capacity)
}

#[test]
fn what_is_added_is_zero_and_holds_data() {
    on_each(|storage| {
        write(storage, SMALL - 4, &[7; 4]).unwrap();
        assert!(is_outside(write(storage, SMALL - 4, &[8; 5]), SMALL));
        storage.resize(LARGE).unwrap();
        assert_eq!(storage.capacity(), LARGE);
        let mut expected = vec![0; (LARGE - SMALL) as usize + 4];
        expected[..4].fill(7);
        assert!(read(storage, SMALL - 4, expected.len()).unwrap() == expected);

        write(storage, LARGE - 5, &[9; 5]).unwrap();
        assert_eq!(read(storage, LARGE - 6, 6).unwrap(), [0, 9, 9, 9, 9, 9]);
        assert!(is_outside(read(storage, LARGE - 5, 6), LARGE));
        storage.flush().unwrap();
        storage.flush_range(LARGE - 5, 5).unwrap();
        storage.discard(SMALL, LARGE - SMALL).unwrap();
        assert_eq!(read(storage, LARGE - 5, 5).unwrap(), [0; 5]);
        // What maps it elsewhere finds it all.
        let length = storage.mappable().unwrap().file.metadata().unwrap().len();
        assert!(length >= LARGE, "{length}");
    });
}

#[test]
fn what_is_taken_away_is_out_of_range_and_may_come_back() {
    on_each(|storage| {
        storage.resize(LARGE).unwrap();
        write(storage, LARGE - 3, &[7; 3]).unwrap();
        let length = || storage.mappable().unwrap().file.metadata().unwrap().len();
        let before = length();
        storage.resize(100).unwrap();
        assert_eq!(storage.capacity(), 100);
        assert!(is_outside(read(storage, 99, 2), 100));
        assert!(is_outside(write(storage, LARGE - 3, &[8; 3]), 100));
        assert!(is_outside(storage.discard(0, 101), 100));
        assert!(is_outside(storage.write_zeroes(100, 1), 100));
        // It may be mapped elsewhere.
        assert_eq!(length(), before);
        storage.resize(LARGE).unwrap();
        assert_eq!(read(storage, LARGE - 3, 3).unwrap(), [7; 3]);
    });
}

#[test]
fn impossible_sizes_change_nothing() {
    on_each(|storage| {
        write(storage, 0, &[7; 100]).unwrap();
        // No file system takes a file of the second size, nor an address space the
        // mapping.
        for capacity in [0, i64::MAX as u64, 1 << 63, u64::MAX] {
            let error = storage.resize(capacity).unwrap_err();
            assert_eq!(error.capacity, capacity);
            assert_eq!(storage.capacity(), SMALL);
        }
        assert_eq!(read(storage, 0, 100).unwrap(), [7; 100]);
        assert!(is_outside(read(storage, SMALL, 1), SMALL));
    });
}

#[test]
fn the_file_has_its_blocks_and_its_new_size_the_next_time() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    let storage = FileStorage::open(&path, Some(SMALL)).unwrap();
    storage.resize(LARGE).unwrap();
    write(&storage, LARGE - 1, &[7]).unwrap();
    drop(storage);
    assert_eq!(fs::metadata(&path).unwrap().len(), LARGE);
    let storage = FileStorage::open(&path, None).unwrap();
    assert_eq!(storage.capacity(), LARGE);
    assert_eq!(read(&storage, LARGE - 1, 1).unwrap(), [7]);
}

/// Bytes of the host that a file takes.
fn allocated(path: &Path) -> u64 {
    let file = fs::File::open(path).unwrap();
    // Blocks are counted when they are written out at the latest.
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn ho10_growth_within_a_longer_file_allocates_its_blocks() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let storage = FileStorage::open(&path, Some(1 << 20)).unwrap();
    assert!((1 << 20..2 << 20).contains(&allocated(&path)));
    storage.resize((6 << 20) + 1).unwrap();
    assert!((6 << 20..7 << 20).contains(&allocated(&path)));
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20);
    // What was discarded on purpose stays so.
    storage.discard(0, 1 << 20).unwrap();
    storage.resize(2 << 20).unwrap();
    storage.resize(8 << 20).unwrap();
    assert!((7 << 20..8 << 20).contains(&allocated(&path)));
}

#[test]
fn transfers_go_on_meanwhile() {
    on_each(|storage| {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for part in 0..2 {
                let (done, offset) = (&done, part * SMALL / 2);
                scope.spawn(move || {
                    let mut round = 0u8;
                    while !done.load(Ordering::Relaxed) {
                        round = round.wrapping_add(1);
                        write(storage, offset, &[round; 5000]).unwrap();
                        assert!(read(storage, offset, 5000).unwrap() == [round; 5000]);
                    }
                });
            }
            for size in 1..200 {
                storage.resize(SMALL + size * 5000).unwrap();
                storage.resize(SMALL).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}
