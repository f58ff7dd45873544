// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which ranges the table accepts, and what unmapping leaves.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use ringbar_vfio_user::dma::{DmaError, DmaMap, DmaMemory, DmaTable, DmaUnmap, MAX_RANGES};
use rustix::io::Errno;
use vm_memory::Permissions::{Read, ReadWrite};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::support::{PAGE, map, mappings, memfd, send, unmap};

fn readable(table: &DmaTable, page: u64) -> bool {
    let memory = table.memory();
    memory.is_some_and(|memory| memory.check_range(GuestAddress(page * PAGE), 4096, Read))
}

/// The pages from 0 to before `end` that can be read.
fn pages(table: &DmaTable, end: u64) -> Vec<u64> {
    (0..end).filter(|page| readable(table, *page)).collect()
}

#[test]
fn an_empty_table_has_no_memory() {
    let mut table = DmaTable::new();
    assert!(table.memory().is_none());
    assert_eq!(table.unmap(DmaUnmap::All), Ok(()));
    assert!(table.is_empty());
}

#[test]
fn numbers_that_do_not_fit_each_other_are_refused() {
    let file = memfd("numbers", 4);
    let mut table = DmaTable::new();
    let mut attempt = |address, size, offset| {
        let map = DmaMap {
            address,
            size,
            offset,
            access: ReadWrite,
        };
        let result = table.map(map, send(&file), |_| false);
        assert!(table.is_empty());
        assert!(table.memory().is_none());
        let error = result.unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        error
    };
    assert_eq!(attempt(0, 0, 0), DmaError::Empty { address: 0 });
    for (address, size, offset) in [(1, PAGE, 0), (0, PAGE + 1, 0), (0, PAGE, 2048)] {
        let error = attempt(address, size, offset);
        assert!(matches!(error, DmaError::Misaligned { .. }), "{error}");
    }
    let top = u64::MAX - PAGE + 1;
    for (address, size) in [(top, 2 * PAGE), (2 * PAGE, top), (top, top)] {
        let error = attempt(address, size, 0);
        assert!(matches!(error, DmaError::Overflow { .. }), "{error}");
    }
    for (size, offset) in [
        (5 * PAGE, 0),
        (PAGE, 4 * PAGE),
        (2 * PAGE, 3 * PAGE),
        (PAGE, top),
    ] {
        let error = attempt(0, size, offset);
        assert!(matches!(error, DmaError::BeyondFile { .. }), "{error}");
    }
    assert_eq!(mappings("numbers").0, 0);
}

#[test]
fn only_regular_files_are_mapped() {
    let mut table = DmaTable::new();
    for path in ["/dev/zero", "/proc/self"] {
        let file = std::fs::File::open(path).unwrap();
        let result = map(&mut table, (0, 1, 0), Read, Some(&file));
        assert_eq!(result, Err(DmaError::NotRegular));
    }
}

#[test]
fn mapped_addresses_cannot_be_mapped_again() {
    let file = memfd("overlap", 16);
    let mut table = DmaTable::new();
    map(&mut table, (10, 4, 0), ReadWrite, Some(&file)).unwrap();
    map(&mut table, (20, 4, 0), ReadWrite, None).unwrap();
    for (address, size) in [
        (10, 4),
        (9, 2),
        (13, 1),
        (11, 2),
        (0, 16),
        (9, 6),
        (23, 9),
        (14, 7),
    ] {
        let error = map(&mut table, (address, size, 0), ReadWrite, Some(&file)).unwrap_err();
        assert!(matches!(error, DmaError::Overlap { .. }), "{error}");
        assert_eq!(error.errno(), Errno::EXIST);
    }
    assert_eq!(table.len(), 2);
    map(&mut table, (14, 6, 0), ReadWrite, Some(&file)).unwrap();
    map(&mut table, (9, 1, 0), ReadWrite, Some(&file)).unwrap();
    assert_eq!(pages(&table, 30), Vec::from_iter(9..20));
}

#[test]
fn unmapping_takes_what_is_in_the_range_and_nothing_else() {
    let file = memfd("portions", 16);
    let mut table = DmaTable::new();
    let fill = |table: &mut DmaTable| {
        table.unmap(DmaUnmap::All).unwrap();
        map(table, (0, 4, 0), ReadWrite, Some(&file)).unwrap();
        map(table, (4, 4, 8), ReadWrite, Some(&file)).unwrap();
        map(table, (12, 4, 4), ReadWrite, Some(&file)).unwrap();
    };
    for (address, size) in [
        (0, 4),
        (0, 1),
        (3, 1),
        (1, 2),
        (2, 4),
        (0, 8),
        (3, 10),
        (8, 4),
        (0, 16),
    ] {
        fill(&mut table);
        assert_eq!(unmap(&mut table, address, size), Ok(()));
        let mapped = (0..16).filter(|page| !(8..12).contains(page));
        let left = mapped.filter(|page| !(address..address + size).contains(page));
        assert_eq!(pages(&table, 20), Vec::from_iter(left), "{address}+{size}");
    }
    assert!(table.is_empty());
    assert!(table.memory().is_none());
}

#[test]
fn what_is_left_of_a_split_range_shows_the_same_bytes() {
    let file = memfd("split", 8);
    let mut table = DmaTable::new();
    map(&mut table, (100, 8, 0), ReadWrite, Some(&file)).unwrap();
    let memory = table.memory().unwrap();
    for page in 0..8 {
        memory
            .store(
                page,
                GuestAddress((100 + page) * PAGE),
                std::sync::atomic::Ordering::Relaxed,
            )
            .unwrap();
    }
    unmap(&mut table, 103, 2).unwrap();
    assert_eq!(table.len(), 2);
    let memory = table.memory().unwrap();
    for page in [0, 1, 2, 5, 6, 7] {
        let value: u64 = memory.read_obj(GuestAddress((100 + page) * PAGE)).unwrap();
        assert_eq!(value, page);
    }
}

#[test]
fn unmapping_nothing_succeeds_and_bad_numbers_do_not() {
    let mut table = DmaTable::new();
    assert_eq!(unmap(&mut table, 7, 1), Ok(()));
    assert_eq!(
        unmap(&mut table, 7, 0),
        Err(DmaError::Empty { address: 7 * PAGE })
    );
    let unmap = DmaUnmap::Range {
        address: u64::MAX - PAGE + 1,
        size: 2 * PAGE,
    };
    assert_eq!(table.unmap(unmap).unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn ranges_without_memory_are_remembered() {
    let own = memfd("own", 4);
    let (device, inode) = own.metadata().map(|m| (m.dev(), m.ino())).unwrap();
    let mut table = DmaTable::new();
    let range = DmaMap {
        address: 0,
        size: 4 * PAGE,
        offset: 0,
        access: ReadWrite,
    };
    let is_own = |file: &std::fs::File| {
        let metadata = file.metadata().unwrap();
        (metadata.dev(), metadata.ino()) == (device, inode)
    };
    table.map(range, send(&own), is_own).unwrap();
    map(&mut table, (8, 4, 0), ReadWrite, None).unwrap();
    assert!(table.memory().is_none());
    assert_eq!(mappings("own").0, 0);
    assert_eq!(table.len(), 2);
    assert!(map(&mut table, (0, 1, 0), ReadWrite, None).is_err());
    // An access does not go around them either.
    let file = memfd("beside-own", 4);
    map(&mut table, (4, 4, 0), ReadWrite, Some(&file)).unwrap();
    assert_eq!(pages(&table, 16), [4, 5, 6, 7]);
    unmap(&mut table, 0, 4).unwrap();
    unmap(&mut table, 8, 4).unwrap();
    assert_eq!(table.len(), 1);
}

#[test]
fn the_last_address_can_be_mapped() {
    let file = memfd("top", 2);
    let mut table = DmaTable::new();
    let top = u64::MAX / PAGE;
    map(&mut table, (top, 1, 1), ReadWrite, Some(&file)).unwrap();
    map(&mut table, (top - 1, 1, 0), ReadWrite, Some(&file)).unwrap();
    let memory = table.memory().unwrap();
    let start = GuestAddress((top - 1) * PAGE);
    assert!(memory.check_range(start, 8192, ReadWrite));
    assert!(!memory.check_range(start, 8193, ReadWrite));
    memory.write_slice(&[7; 8192], start).unwrap();
    let mut bytes = [0; 8192];
    memory.read_slice(&mut bytes, start).unwrap();
    assert_eq!(bytes, [7; 8192]);
    memory
        .read_slice(&mut bytes[..1], GuestAddress(u64::MAX))
        .unwrap();
    assert!(
        memory
            .read_slice(&mut bytes[..2], GuestAddress(u64::MAX))
            .is_err()
    );
    assert!(!memory.check_range(GuestAddress(u64::MAX), usize::MAX, Read));
    unmap(&mut table, top, 1).unwrap();
    assert_eq!(table.len(), 1);
    // The whole address space but the last page, without memory.
    table.unmap(DmaUnmap::All).unwrap();
    map(&mut table, (0, top, 0), ReadWrite, None).unwrap();
    map(&mut table, (top, 1, 0), ReadWrite, Some(&file)).unwrap();
    unmap(&mut table, 1, top).unwrap();
    assert_eq!(table.len(), 1);
}

#[test]
fn the_number_of_ranges_is_limited() {
    let file = memfd("limit", 4);
    let mut table = DmaTable::new();
    for range in 0..MAX_RANGES as u64 {
        map(&mut table, (range * 4, 3, 0), ReadWrite, Some(&file)).unwrap();
    }
    let error = map(&mut table, (3, 1, 0), ReadWrite, Some(&file)).unwrap_err();
    assert_eq!(error, DmaError::TooManyRanges);
    assert_eq!(error.errno(), Errno::NOSPC);
    // A split needs one more; unmapping an end does not.
    assert_eq!(unmap(&mut table, 1, 1), Err(DmaError::TooManyRanges));
    assert!(readable(&table, 1));
    assert_eq!(unmap(&mut table, 2, 3), Ok(()));
    assert_eq!(pages(&table, 8), [0, 1, 5, 6]);
    assert_eq!(unmap(&mut table, 4, 4), Ok(()));
    assert_eq!(unmap(&mut table, 9, 1), Ok(()));
    assert_eq!(table.len(), MAX_RANGES);
    table.unmap(DmaUnmap::All).unwrap();
    assert_eq!(mappings("limit").0, 0);
}

/// A strict IOMMU beside thousands of ranges that stay: each change makes a new snapshot while
/// the previous one is in use.
#[test]
fn ten_thousand_changes_of_a_large_table() {
    let file = memfd("large", 8192);
    let mut table = DmaTable::new();
    for range in 0..8192 {
        map(&mut table, (range * 2, 1, range), ReadWrite, Some(&file)).unwrap();
    }
    let started = Instant::now();
    let mut in_use: Option<DmaMemory> = table.memory();
    for change in 0..10_000 {
        let page = (change * 2657 % 8192) * 2 + 1;
        map(&mut table, (page, 1, change % 8192), Read, Some(&file)).unwrap();
        in_use = table.memory().or(in_use);
        unmap(&mut table, page, 1).unwrap();
        in_use = table.memory().or(in_use);
    }
    println!(
        "10,000 maps and unmaps beside 8,192 ranges: {:?}",
        started.elapsed()
    );
    assert_eq!(table.len(), 8192);
    assert_eq!(mappings("large"), (1, true));
    drop(in_use);
}
