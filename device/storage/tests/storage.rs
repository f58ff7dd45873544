// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The same tests on each storage, and what is special about files.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use ringbar_storage::{FileStorage, MemoryStorage, OpenError};
use ringbar_storage::{Storage, StorageError};
use rustix::fs::{SealFlags, fcntl_get_seals, ftruncate};
use tempfile::TempDir;
use vm_memory::VolatileSlice;

/// Not a multiple of a page.
const CAPACITY: u64 = 10_001;

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

fn write(storage: &dyn Storage, offset: u64, data: &[u8]) -> Result<(), StorageError> {
    let mut data = data.to_vec();
    storage.write(offset, VolatileSlice::from(&mut data[..]))
}

fn read(storage: &dyn Storage, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
    let mut data = vec![0xee; len];
    storage.read(offset, VolatileSlice::from(&mut data[..]))?;
    Ok(data)
}

#[test]
fn starts_as_zeros() {
    on_each(|storage| {
        assert_eq!(storage.capacity(), CAPACITY);
        assert_eq!(
            read(storage, 0, CAPACITY as usize).unwrap(),
            [0; CAPACITY as usize]
        );
    });
}

#[test]
fn bytes_come_back_and_the_neighbours_stay() {
    on_each(|storage| {
        for (offset, len) in [
            (0, 1),
            (1, 3),
            (4090, 20),
            (9999, 2),
            (0, CAPACITY as usize),
        ] {
            write(storage, 0, &[0x55; CAPACITY as usize]).unwrap();
            let data: Vec<u8> = (0..len).map(|i| i as u8 ^ 0xa0).collect();
            write(storage, offset, &data).unwrap();
            let mut expected = vec![0x55; CAPACITY as usize];
            expected[offset as usize..][..len].copy_from_slice(&data);
            assert!(read(storage, 0, CAPACITY as usize).unwrap() == expected);
        }
    });
}

#[test]
fn ranges_outside_are_refused() {
    on_each(|storage| {
        for (offset, len) in [
            (CAPACITY, 1),
            (CAPACITY - 1, 2),
            (u64::MAX, 1),
            (1 << 63, 1),
        ] {
            assert!(matches!(
                write(storage, offset, &vec![1; len]),
                Err(StorageError::OutOfRange { .. })
            ));
            assert!(matches!(
                read(storage, offset, len),
                Err(StorageError::OutOfRange { .. })
            ));
        }
        assert_eq!(read(storage, CAPACITY, 0).unwrap(), []);
    });
}

#[test]
fn flushing_works_at_every_place() {
    on_each(|storage| {
        storage.flush().unwrap();
        for (offset, len) in [
            (0, 0),
            (0, 1),
            (4095, 2),
            (0, CAPACITY),
            (CAPACITY - 1, 1),
            (CAPACITY, 0),
        ] {
            storage.flush_range(offset, len).unwrap();
        }
    });
}

#[test]
fn mappable_file_is_the_memory() {
    on_each(|storage| {
        write(storage, 4090, b"device memory").unwrap();
        let mappable = storage.mappable().unwrap();
        let mut seen = [0; 13];
        mappable
            .file
            .read_exact_at(&mut seen, mappable.offset + 4090)
            .unwrap();
        assert_eq!(&seen, b"device memory");
    });
}

#[test]
fn memory_cannot_be_cut_off() {
    let storage = MemoryStorage::new(CAPACITY).unwrap();
    let file = storage.mappable().unwrap().file;
    let seals = fcntl_get_seals(file).unwrap();
    // It may grow: the device can be resized.
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::SEAL));
    assert!(ftruncate(file, 0).is_err());
    // Whole pages, so that a mapping of them is all memory.
    assert_eq!(file.metadata().unwrap().len() % 4096, 0);
}

#[test]
fn shorter_file_is_extended_and_keeps_its_bytes() {
    let scratch = scratch();
    File::create(&scratch.path)
        .unwrap()
        .write_all(b"kept")
        .unwrap();
    let storage = FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap();
    assert_eq!(read(&storage, 0, 6).unwrap(), b"kept\0\0");
    let metadata = fs::metadata(&scratch.path).unwrap();
    assert_eq!(metadata.len(), CAPACITY);
    assert!(metadata.blocks() * 512 >= CAPACITY, "blocks are missing");
}

#[test]
fn longer_file_keeps_its_length() {
    let scratch = scratch();
    fs::write(&scratch.path, vec![7; 20_000]).unwrap();
    let storage = FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap();
    assert_eq!(storage.capacity(), CAPACITY);
    write(&storage, 0, &[1; CAPACITY as usize]).unwrap();
    storage.flush().unwrap();
    let bytes = fs::read(&scratch.path).unwrap();
    assert_eq!(bytes.len(), 20_000);
    assert!(bytes[CAPACITY as usize..].iter().all(|byte| *byte == 7));
}

#[test]
fn size_may_be_that_of_the_file() {
    let scratch = scratch();
    assert!(matches!(
        FileStorage::open(&scratch.path, None),
        Err(OpenError::SizeMissing(_))
    ));
    assert!(!scratch.path.exists());
    fs::write(&scratch.path, "").unwrap();
    assert!(matches!(
        FileStorage::open(&scratch.path, None),
        Err(OpenError::SizeMissing(_))
    ));
    fs::write(&scratch.path, "twelve bytes").unwrap();
    let storage = FileStorage::open(&scratch.path, None).unwrap();
    assert_eq!(storage.capacity(), 12);
    assert_eq!(read(&storage, 0, 12).unwrap(), b"twelve bytes");
}

#[test]
fn second_user_is_refused_until_the_first_is_gone() {
    let scratch = scratch();
    let first = FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap();
    assert!(matches!(
        FileStorage::open(&scratch.path, Some(CAPACITY)),
        Err(OpenError::InUse(_))
    ));
    drop(first);
    FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap();
}

#[test]
fn failed_allocation_leaves_the_file_as_it_was() {
    let scratch = scratch();
    fs::write(&scratch.path, "small").unwrap();
    // More than any file system here has.
    assert!(matches!(
        FileStorage::open(&scratch.path, Some(1 << 60)),
        Err(OpenError::Allocate { .. })
    ));
    assert_eq!(fs::read(&scratch.path).unwrap(), b"small");
}

#[test]
fn a_new_file_is_its_owners() {
    let scratch = scratch();
    drop(FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap());
    let mode = fs::metadata(&scratch.path).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // Of others it stays what it is.
    fs::set_permissions(&scratch.path, fs::Permissions::from_mode(0o664)).unwrap();
    drop(FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap());
    let mode = fs::metadata(&scratch.path).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o664);
}

#[test]
fn nothing_is_left_of_a_file_that_was_created_in_vain() {
    let scratch = scratch();
    for size in [0, 1 << 60, i64::MAX as u64, u64::MAX] {
        FileStorage::open(&scratch.path, Some(size)).unwrap_err();
        assert!(!scratch.path.exists(), "{size}");
    }
    // Where there was one, it is not ours to delete.
    fs::write(&scratch.path, "").unwrap();
    FileStorage::open(&scratch.path, Some(1 << 60)).unwrap_err();
    assert!(scratch.path.exists());
}

#[test]
fn a_link_may_lead_to_a_file_that_is_to_be_created() {
    let scratch = scratch();
    let target = scratch.path.with_extension("target");
    symlink(&target, &scratch.path).unwrap();
    drop(FileStorage::open(&scratch.path, Some(CAPACITY)).unwrap());
    assert_eq!(fs::metadata(&target).unwrap().len(), CAPACITY);
}

#[test]
fn only_regular_files_will_do() {
    assert!(matches!(
        FileStorage::open("/dev/null".as_ref(), Some(1)),
        Err(OpenError::NotAFile(_))
    ));
    assert!(matches!(
        FileStorage::open("/".as_ref(), Some(1)),
        Err(OpenError::Open { .. })
    ));
}
