// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory in huge pages: with pages where this process may set some aside, and everywhere the errors
//! without them, and what a process does with such memory that another one has made.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringbar_storage::{ErrorKind, MemoryStorage, OpenError, Storage, with_causes};
use rustix::fs::{SealFlags, fcntl_get_seals, ftruncate};
use rustix::io::Errno;
use support::seccomp::with_failing;
use support::{read, status, write};

const PAGE: u64 = 2 << 20;

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn number(name: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new(FOLDER).join(name)).ok()?;
    text.trim().parse().ok()
}

/// Held by each test: one that asks for too many pages has all of them for a moment.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // It protects nothing of this process.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pages that were set aside for a test.
struct Reserved {
    before: u64,
}

impl Reserved {
    /// Sees to it that so many pages are free. `None` where this process may not, or cannot.
    fn new(free: u64) -> Option<Self> {
        let before = number("nr_hugepages")?;
        let reserved = Self { before };
        let missing = free.saturating_sub(number("free_hugepages")?);
        let wanted = (before + missing).to_string();
        fs::write(Path::new(FOLDER).join("nr_hugepages"), wanted).ok()?;
        // The kernel sets aside as many as it finds.
        (number("free_hugepages")? >= free).then_some(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let before = self.before.to_string();
        // It could be changed before.
        let _ = fs::write(Path::new(FOLDER).join("nr_hugepages"), before);
    }
}

/// More than any machine has set aside.
const TOO_MUCH: u64 = 1 << 50;

#[test]
fn missing_pages_are_an_error_that_says_what_to_do() {
    let _alone = alone();
    let error = MemoryStorage::with_huge_pages(TOO_MUCH, PAGE).unwrap_err();
    let text = with_causes(&error);
    match number("nr_hugepages") {
        Some(_) => {
            assert!(matches!(error, OpenError::HugePages { .. }), "{text}");
            assert!(text.contains("536870912 free ones of 2048 KiB"), "{text}");
            assert!(text.contains(&format!("{FOLDER}/free_hugepages")), "{text}");
        }
        // Memory without such pages.
        None => assert!(matches!(error, OpenError::NoHugePages { .. }), "{text}"),
    }
    // No system has pages of 8 KiB, and the smallest page is no huge one.
    for page in [8 << 10, 4 << 10, 3, 1, 0, PAGE + 1] {
        let error = MemoryStorage::with_huge_pages(page.max(1) * PAGE, page).unwrap_err();
        assert!(matches!(error, OpenError::NoHugePages { .. }), "{error}");
    }
    for (size, page) in [(PAGE + 4096, PAGE), (1, PAGE)] {
        let error = MemoryStorage::with_huge_pages(size, page).unwrap_err();
        assert!(matches!(error, OpenError::HugePageSize { .. }), "{error}");
    }
    let error = MemoryStorage::with_huge_pages(0, PAGE).unwrap_err();
    assert!(matches!(error, OpenError::Size(0)), "{error}");
}

#[test]
fn memory_is_in_huge_pages_that_stay() {
    let _alone = alone();
    let Some(_reserved) = Reserved::new(4) else {
        // An ordinary user, or a machine without memory in one piece: the other test is for them.
        eprintln!("no huge pages can be set aside, so only their absence is tested");
        return;
    };
    let free = || number("free_hugepages").unwrap();
    let before = free();
    let storage = MemoryStorage::with_huge_pages(2 * PAGE, PAGE).unwrap();
    assert_eq!((storage.capacity(), free()), (2 * PAGE, before - 2));
    let file = storage.mappable().unwrap().file;
    let seals = fcntl_get_seals(file).unwrap();
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::SEAL));
    assert!(ftruncate(file, 0).is_err());

    assert_eq!(read(&storage, 2 * PAGE - 3, 3).unwrap(), [0; 3]);
    write(&storage, PAGE - 2, &[1, 2, 3, 4]).unwrap();
    assert_eq!(read(&storage, PAGE - 3, 6).unwrap(), [0, 1, 2, 3, 4, 0]);
    // All of the first page, and a part of the second.
    storage.discard(0, PAGE + 1).unwrap();
    // Nobody else can take them, even before they are accessed again.
    assert_eq!(free(), before - 2);
    assert_eq!(read(&storage, PAGE - 3, 6).unwrap(), [0, 0, 0, 0, 4, 0]);
    storage.write_zeroes(PAGE + 1, 1).unwrap();
    assert_eq!(read(&storage, PAGE, 4).unwrap(), [0; 4]);

    storage.resize(3 * PAGE).unwrap();
    assert_eq!((storage.capacity(), free()), (3 * PAGE, before - 3));
    write(&storage, 3 * PAGE - 1, &[9]).unwrap();
    for size in [3 * PAGE + 4096, TOO_MUCH] {
        storage.resize(size).unwrap_err();
        // What was taken for it is given back.
        assert_eq!((storage.capacity(), free()), (3 * PAGE, before - 3));
    }
    storage.resize(PAGE).unwrap();
    assert_eq!(status(read(&storage, PAGE, 1)), Some(ErrorKind::OutOfRange));
    storage.resize(3 * PAGE).unwrap();
    assert_eq!(read(&storage, 3 * PAGE - 1, 1).unwrap(), [9]);
    drop(storage);
    assert_eq!(free(), before);
}

/// A process that takes over memory in huge pages treats it as the one that has made it. The pages
/// of this memory are ordinary ones, which every machine has, and which show what is done to them.
#[test]
fn adopted_memory_is_in_huge_pages_still() {
    let made = MemoryStorage::new(2 * PAGE).unwrap();
    let file = made.mappable().unwrap().file.try_clone().unwrap();
    let allocated = || made.mappable().unwrap().file.metadata().unwrap().blocks() * 512;
    let storage = MemoryStorage::adopt(file, 2 * PAGE, Some(PAGE), None).unwrap();
    write(&storage, 0, &vec![7; 2 * PAGE as usize]).unwrap();
    assert_eq!(allocated(), 2 * PAGE);
    storage.discard(0, 2 * PAGE).unwrap();
    // Nobody else can have got them.
    assert_eq!(allocated(), 2 * PAGE);
    assert_eq!(read(&storage, 2 * PAGE - 1, 1).unwrap(), [0]);
    storage.resize(2 * PAGE + 4096).unwrap_err();
    storage.resize(3 * PAGE).unwrap();
    assert_eq!((storage.capacity(), allocated()), (3 * PAGE, 3 * PAGE));
}

/// Growth that fails leaves no pages, and a file that is no longer than before.
#[test]
fn growth_that_fails_leaves_neither_pages_nor_length() {
    let made = MemoryStorage::new(PAGE).unwrap();
    let file = made.mappable().unwrap().file;
    let storage = MemoryStorage::adopt(file.try_clone().unwrap(), PAGE, Some(PAGE), None).unwrap();
    let resize = || {
        storage
            .resize(2 * PAGE)
            .map_err(|error| with_causes(&error))
    };
    // The first one fails after the pages were allocated.
    for call in [libc::SYS_ftruncate, libc::SYS_fallocate] {
        let error = with_failing(&[call], Errno::PERM, resize).unwrap_err();
        assert!(error.contains("not permitted"), "{error}");
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (PAGE, 0));
        assert_eq!(storage.capacity(), PAGE);
    }
}
