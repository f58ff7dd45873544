// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ranges that are discarded or set to 0, on each storage.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use ringbar_storage::{FileStorage, MemoryStorage};
use ringbar_storage::{Storage, StorageError};
use tempfile::TempDir;
use vm_memory::VolatileSlice;

/// Not a multiple of a page.
const CAPACITY: u64 = (1 << 20) + 123;

struct Scratch {
    _directory: TempDir,
    path: PathBuf,
}

fn scratch() -> Scratch {
    let directory = TempDir::new().unwrap();
    Scratch {
        path: directory.path().join("disk"),
        _directory: directory,
    }
}

fn on_each(test: impl Fn(&dyn Storage)) {
    test(&MemoryStorage::new(CAPACITY).unwrap());
    let scratch = scratch();
    test(&FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap());
}

type Operation = fn(&dyn Storage, u64, u64) -> Result<(), StorageError>;

const OPERATIONS: [Operation; 2] = [
    |storage, offset, length| storage.discard(offset, length),
    |storage, offset, length| storage.write_zeroes(offset, length),
];

fn write(storage: &dyn Storage, offset: u64, data: &[u8]) {
    let mut data = data.to_vec();
    storage
        .write(offset, VolatileSlice::from(&mut data[..]))
        .unwrap();
}

fn contents(storage: &dyn Storage) -> Vec<u8> {
    let mut data = vec![0xee; CAPACITY as usize];
    storage.read(0, VolatileSlice::from(&mut data[..])).unwrap();
    data
}

fn noise() -> Vec<u8> {
    (0..CAPACITY).map(|i| (i % 251) as u8 | 1).collect()
}

fn file(storage: &dyn Storage) -> &File {
    storage.mappable().unwrap().file
}

/// Bytes of the host that the file takes.
fn allocated(file: &File) -> u64 {
    // Blocks are counted when they are written out at the latest.
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn range_becomes_0_and_its_neighbours_stay() {
    on_each(|storage| {
        for operation in OPERATIONS {
            for (offset, length) in [
                (0, 0),
                (0, 1),
                (1, 4095),
                (4095, 2),
                (4096, 4096),
                (4097, 8191),
                (100, 300_000),
                (65536, 65536),
                (CAPACITY - 124, 124),
                (CAPACITY - 1, 1),
                (CAPACITY, 0),
                (0, CAPACITY),
            ] {
                let mut expected = noise();
                write(storage, 0, &expected);
                expected[offset as usize..][..length as usize].fill(0);
                operation(storage, offset, length).unwrap();
                assert!(contents(storage) == expected, "{length} bytes at {offset}");
                // Once more, over what is a hole by now.
                operation(storage, offset, length).unwrap();
                assert!(contents(storage) == expected);
                storage.flush_range(offset, length).unwrap();
            }
        }
    });
}

#[test]
fn ranges_outside_are_refused() {
    on_each(|storage| {
        let before = noise();
        write(storage, 0, &before);
        let length = file(storage).metadata().unwrap().len();
        for operation in OPERATIONS {
            for (offset, length) in [
                (CAPACITY, 1),
                (CAPACITY - 1, 2),
                (CAPACITY + 1, 0),
                (0, CAPACITY + 1),
                (u64::MAX, 1),
                (1, u64::MAX),
                (1 << 63, 1),
            ] {
                assert!(matches!(
                    operation(storage, offset, length),
                    Err(StorageError::OutOfRange { .. })
                ));
            }
        }
        assert!(contents(storage) == before);
        assert_eq!(file(storage).metadata().unwrap().len(), length);
    });
}

#[test]
fn discard_gives_the_space_back() {
    on_each(|storage| {
        let mut expected = noise();
        write(storage, 0, &expected);
        let full = allocated(file(storage));
        assert!(full >= CAPACITY, "{full}");
        // 512 KiB and a bit at both ends, which share a page with others.
        let (offset, length) = (65536 - 10, (512 << 10) + 20);
        storage.discard(offset, length).unwrap();
        expected[offset as usize..][..length as usize].fill(0);
        let rest = allocated(file(storage));
        assert!(rest <= full - (512 << 10), "{full} before, {rest} after");
        assert!(contents(storage) == expected);
    });
}

#[test]
fn space_that_was_zeroed_stays() {
    on_each(|storage| {
        write(storage, 0, &noise());
        let full = allocated(file(storage));
        storage.write_zeroes(0, CAPACITY).unwrap();
        assert!(allocated(file(storage)) >= full);

        // Space that was given back comes again.
        storage.discard(0, CAPACITY).unwrap();
        assert!(allocated(file(storage)) < full / 2);
        storage.write_zeroes(0, CAPACITY).unwrap();
        assert!(allocated(file(storage)) >= full);
        assert!(contents(storage).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn discarded_space_is_allocated_for_a_write() {
    let scratch = scratch();
    let storage = FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap();
    storage.discard(0, CAPACITY).unwrap();
    assert!(allocated(file(&storage)) < 65536);
    write(&storage, 100_000, &[7; 200_000]);
    assert!((200_000..300_000).contains(&allocated(file(&storage))));
    assert_eq!(contents(&storage)[100_000..300_000], [7; 200_000]);

    // And all of it, when the file is opened the next time.
    drop(storage);
    let storage = FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap();
    assert!(allocated(file(&storage)) >= CAPACITY);
    assert_eq!(contents(&storage)[100_000..300_000], [7; 200_000]);
}

#[test]
fn the_rest_of_a_longer_file_is_left_alone() {
    let scratch = scratch();
    fs::write(&scratch.path, vec![7; CAPACITY as usize + 10_000]).unwrap();
    for operation in OPERATIONS {
        let storage = FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap();
        operation(&storage, 0, CAPACITY).unwrap();
        storage.flush().unwrap();
        drop(storage);
        let bytes = fs::read(&scratch.path).unwrap();
        assert_eq!(bytes.len(), CAPACITY as usize + 10_000);
        let (device, rest) = bytes.split_at(CAPACITY as usize);
        assert!(device.iter().all(|byte| *byte == 0));
        assert!(rest.iter().all(|byte| *byte == 7));
    }
}
