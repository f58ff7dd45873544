// SPDX-License-Identifier: Apache-2.0 OR MIT

//! That what was flushed is in the file, and not only in the kernel's memory.

mod support;

use std::sync::Arc;

use ringbar_page_cache::Unwritten;
use ringbar_storage::FileStorage;
use ringbar_storage::Storage;
use support::{directory_on_disk, write};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Not a multiple of a page.
const CAPACITY: u64 = (4 << 20) + 123;

/// Ranges, some of which share pages.
const RANGES: [(u64, u64); 6] = [
    (0, 1),
    (4095, 2),
    (100_001, 50_000),
    (1 << 20, 4096),
    (2 << 20, 1 << 20),
    (CAPACITY - 3, 3),
];

fn unwritten(storage: &FileStorage, offset: u64, length: u64) -> Unwritten {
    Unwritten::of(storage.mappable().unwrap().file, offset, length).unwrap()
}

/// Runs `flush` after something was stored in a range by `store`, and asserts that it
/// has made that durable.
#[track_caller]
fn assert_durable(
    storage: &FileStorage,
    (offset, length): (u64, u64),
    store: &dyn Fn(),
    flush: &dyn Fn(),
) {
    // The kernel may write it by itself before it is looked at, but not each time.
    let seen = (0..100).any(|_| {
        store();
        unwritten(storage, offset, length).any()
    });
    assert!(
        seen,
        "the build folder is on a file system whose pages are never dirty: it must be on \
         a disk for this test"
    );
    flush();
    assert_eq!(
        unwritten(storage, offset, length),
        Unwritten::default(),
        "pages of {length} bytes at {offset}"
    );
}

#[track_caller]
fn test(store: impl Fn(&FileStorage, u64, u64)) {
    let directory = directory_on_disk();
    let storage = FileStorage::open(&directory.path().join("disk"), Some(CAPACITY)).unwrap();
    for (offset, length) in RANGES {
        let store = || store(&storage, offset, length);
        let (all, range) = (
            || storage.flush().unwrap(),
            || storage.flush_range(offset, length).unwrap(),
        );
        assert_durable(&storage, (offset, length), &store, &all);
        assert_durable(&storage, (offset, length), &store, &range);
    }
    storage.flush().unwrap();
    assert_eq!(unwritten(&storage, 0, 0), Unwritten::default());
}

#[test]
fn ho2_what_was_written_is_in_the_file_after_a_flush() {
    test(|storage, offset, length| write(storage, offset, &vec![7; length as usize]).unwrap());
}

/// By the virtual machine monitor, which lets the guest do it.
#[test]
fn ho2_stores_through_another_mapping_are_in_the_file_after_a_flush() {
    test(|storage, offset, length| {
        let file = Arc::new(storage.mappable().unwrap().file.try_clone().unwrap());
        let region =
            MmapRegion::<()>::from_file(FileOffset::from_arc(file, 0), CAPACITY as usize).unwrap();
        region
            .get_slice(offset as usize, length as usize)
            .unwrap()
            .copy_from(&vec![7u8; length as usize]);
    });
}

/// The ends of these share a page with something else, which the kernel writes 0 to.
#[test]
fn ho2_ranges_that_became_0_are_in_the_file_after_a_flush() {
    test(|storage, offset, length| {
        write(storage, offset, &vec![7; length as usize]).unwrap();
        storage.discard(offset, length).unwrap();
        write(storage, offset, &[1]).unwrap();
    });
    test(|storage, offset, length| {
        write(storage, offset, &vec![7; length as usize]).unwrap();
        storage.write_zeroes(offset, length).unwrap();
        write(storage, offset, &[1]).unwrap();
    });
}
