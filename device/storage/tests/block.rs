// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Block storage by io_uring, on a regular file and on loop devices.

#[path = "support/asynchronous.rs"]
mod asynchronous;
mod support;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::TryRecvError;
use std::sync::{Mutex, MutexGuard, PoisonError};

use asynchronous::{CAPACITY, buffer, conformance, noise, submit};
use ringbar_storage::{BlockStorage, ErrorKind, OpenError, Operation, Storage};
use support::{directory_on_disk, read, status, write};

conformance!(on_each);

/// Held by each test: one that starts a process has copies of all files of this one for a
/// moment, and with them their locks, and another opens a file again.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // It protects nothing.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block device over a file, which goes when this is dropped.
struct Loop(PathBuf);

impl Loop {
    /// One with blocks of `sector` bytes, if this system lets this process have one.
    fn new(file: &Path, sector: u32, arguments: &[&str]) -> Option<Self> {
        let sector = sector.to_string();
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector])
            .args(arguments)
            .arg(file)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                Some(Self(path.trim().into()))
            }
            other => {
                // An unprivileged process, or a container.
                eprintln!("no loop device, so only files are tested: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} is left over", self.0.display());
        }
    }
}

/// Runs a test on a file, and on devices with small and with large blocks.
fn on_each(test: impl Fn(&BlockStorage, &Path)) {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    test(&BlockStorage::open(&path, Some(CAPACITY)).unwrap(), &path);
    for sector in [512, 4096] {
        fs::write(&path, vec![0; CAPACITY as usize]).unwrap();
        if let Some(device) = Loop::new(&path, sector, &[]) {
            test(&BlockStorage::open(&device.0, None).unwrap(), &path);
        }
    }
}

#[test]
fn discard_gives_the_space_back_and_zeros_take_it() {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    let storage = BlockStorage::open(&path, Some(CAPACITY)).unwrap();
    let blocks = || {
        File::open(&path).unwrap().sync_all().unwrap();
        fs::metadata(&path).unwrap().blocks() * 512
    };
    assert!(blocks() >= CAPACITY, "not allocated at the start");
    storage.discard(100, CAPACITY - 200).unwrap();
    assert!(blocks() <= CAPACITY / 2, "{}", blocks());
    storage.write_zeroes(0, CAPACITY).unwrap();
    assert!(blocks() >= CAPACITY, "{}", blocks());
}

/// The storage is dropped with operations in flight: they end, and nobody else has its lock.
#[test]
fn the_end_waits_for_what_is_in_flight() {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    let mut ended = Vec::new();
    for _ in 0..10 {
        let storage = BlockStorage::open(&path, Some(CAPACITY)).unwrap();
        let face = storage.asynchronous().unwrap();
        for block in 0..CAPACITY / 4096 {
            let buffer = buffer(face.as_ref(), block * 4096, 4096);
            ended.push(submit(face.as_ref(), Operation::Write(buffer)));
            ended.push(submit(face.as_ref(), Operation::Flush));
        }
        drop(storage);
        // The thread has ended.
        let buffer = buffer(face.as_ref(), 0, 10);
        let late = submit(face.as_ref(), Operation::Read(buffer));
        let late = late.recv().unwrap();
        assert_eq!(status(late.result), Some(ErrorKind::Io));
    }
    // Each has ended or was dropped.
    for ended in ended {
        match ended.try_recv() {
            Ok(completed) => {
                completed.result.unwrap();
            }
            Err(TryRecvError::Disconnected) => {}
            Err(TryRecvError::Empty) => panic!("an operation has neither ended nor was dropped"),
        }
    }
}

/// The file became shorter than the storage.
#[test]
fn a_device_that_is_smaller_than_it_was() {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    let storage = BlockStorage::open(&path, Some(CAPACITY)).unwrap();
    write(&storage, 0, &noise()).unwrap();
    for length in [CAPACITY / 2, CAPACITY / 2 - 100] {
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        assert_eq!(status(read(&storage, CAPACITY / 2, 1)), Some(ErrorKind::Io));
        assert_eq!(status(read(&storage, length - 1, 2)), Some(ErrorKind::Io));
        assert_eq!(read(&storage, 0, 5).unwrap(), noise()[..5]);
        assert_eq!(
            status(write(&storage, CAPACITY - 1, &[1])),
            Some(ErrorKind::Io)
        );
        assert_eq!(fs::metadata(&path).unwrap().len(), length);
    }
    assert!(storage.failure().unwrap().reason.contains("was cut off"));
}

/// A file that was cut off does not grow again, with zeros for what was lost.
#[test]
fn a_size_does_not_repair_a_file_that_was_cut_off() {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    for size in [CAPACITY / 4, CAPACITY, 2 * CAPACITY] {
        let storage = BlockStorage::open(&path, Some(CAPACITY)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(CAPACITY / 2).unwrap();
        storage.resize(size).unwrap_err();
        assert_eq!(storage.capacity(), CAPACITY);
        assert!(storage.failure().unwrap().reason.contains("was cut off"));
        for offset in [0, CAPACITY - 4096] {
            assert_eq!(
                status(write(&storage, offset, &[1; 4096])),
                Some(ErrorKind::Io)
            );
        }
        // Also when it is long enough again.
        file.set_len(2 * CAPACITY).unwrap();
        storage.resize(size).unwrap_err();
        file.set_len(CAPACITY / 2).unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), CAPACITY / 2);
}

#[test]
fn sizes_are_those_of_the_file_or_wanted() {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    let open = |size| BlockStorage::open(&path, size);
    assert!(matches!(open(None), Err(OpenError::SizeMissing(_))));
    for size in [1, 513, CAPACITY + 100] {
        let opened = open(Some(size));
        assert!(matches!(opened, Err(OpenError::Granularity { .. })));
        assert!(!path.exists(), "a file is left over");
    }
    assert!(matches!(open(Some(0)), Err(OpenError::Size(0))));
    drop(open(Some(CAPACITY)).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let storage = open(Some(CAPACITY / 2)).unwrap();
    assert_eq!(storage.capacity(), CAPACITY / 2);
    write(&storage, 0, &[7; CAPACITY as usize / 2]).unwrap();
    assert!(matches!(open(None), Err(OpenError::InUse(_))));
    drop(storage);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[CAPACITY as usize / 2..].iter().all(|byte| *byte == 0));
    let storage = open(Some(2 * CAPACITY)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * CAPACITY);
    assert_eq!(read(&storage, 0, 1).unwrap(), [7]);
    drop(storage);
    assert_eq!(open(None).unwrap().capacity(), 2 * CAPACITY);
    for path in ["/dev/null", "/proc/version"] {
        let opened = BlockStorage::open(Path::new(path), None);
        assert!(opened.is_err(), "{path}");
    }
    assert!(BlockStorage::open(directory.path(), Some(CAPACITY)).is_err());
}

#[test]
fn a_file_grows_and_keeps_its_length() {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    let storage = BlockStorage::open(&path, Some(CAPACITY)).unwrap();
    storage.resize(2 * CAPACITY).unwrap();
    let length = || fs::metadata(&path).unwrap().len();
    assert_eq!((storage.capacity(), length()), (2 * CAPACITY, 2 * CAPACITY));
    write(&storage, 2 * CAPACITY - 3, &[1, 2, 3]).unwrap();
    storage.resize(CAPACITY).unwrap();
    assert_eq!((storage.capacity(), length()), (CAPACITY, 2 * CAPACITY));
    assert_eq!(
        status(read(&storage, CAPACITY, 1)),
        Some(ErrorKind::OutOfRange)
    );
    for size in [0, 1, CAPACITY + 1, 1 << 60, u64::MAX] {
        storage.resize(size).unwrap_err();
        assert_eq!(storage.capacity(), CAPACITY);
    }
    storage.resize(2 * CAPACITY).unwrap();
    assert_eq!(read(&storage, 2 * CAPACITY - 3, 3).unwrap(), [1, 2, 3]);
}

#[test]
fn a_block_device_has_the_size_that_it_has() {
    let _alone = alone();
    let directory = directory_on_disk();
    let path = directory.path().join("disk");
    fs::write(&path, vec![0; CAPACITY as usize]).unwrap();
    let Some(device) = Loop::new(&path, 4096, &[]) else {
        return;
    };
    let open = |size| BlockStorage::open(&device.0, size);
    assert!(matches!(
        open(Some(2 * CAPACITY)),
        Err(OpenError::DeviceTooSmall { .. })
    ));
    assert!(matches!(
        open(Some(512)),
        Err(OpenError::Granularity { .. })
    ));
    let storage = open(Some(CAPACITY / 2)).unwrap();
    assert!(matches!(open(None), Err(OpenError::InUse(_))));
    // As a mount does it.
    let exclusive = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(&device.0);
    assert_eq!(exclusive.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    storage.resize(CAPACITY).unwrap();
    storage.resize(CAPACITY + 4096).unwrap_err();
    assert_eq!(storage.capacity(), CAPACITY);
    write(&storage, CAPACITY - 1, &[1]).unwrap();
    drop(storage);
    drop(device);
    assert!(path.exists());

    let device = Loop::new(&path, 512, &["--read-only"]).unwrap();
    let opened = BlockStorage::open(&device.0, None);
    assert!(matches!(opened, Err(OpenError::ReadOnly(_))), "{opened:?}");
}
