// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Files: how often and how long they are mapped, and for which accesses.

use std::fs::File;

use ringbar_vfio_user::dma::{DmaError, DmaTable, DmaUnmap, MAX_FILES};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use vm_memory::Permissions::{No, Read, ReadWrite, Write};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::support::{PAGE, map, mappings, memfd, read_only, unmap};

fn small(table: &mut DmaTable, address: u64, file: &File) {
    map(table, (address, 1, 0), ReadWrite, Some(file)).unwrap();
}

#[test]
fn two_descriptors_of_a_file_share_a_mapping() {
    let file = memfd("shared", 8);
    let mut table = DmaTable::new();
    small(&mut table, 0, &file);
    small(&mut table, 1, &file.try_clone().unwrap());
    map(&mut table, (2, 6, 1), Read, Some(&read_only(&file))).unwrap();
    assert_eq!(mappings("shared"), (1, true));
    let memory = table.memory().unwrap();
    memory.write_slice(b"both", GuestAddress(0)).unwrap();
    let mut bytes = [0; 4];
    memory.read_slice(&mut bytes, GuestAddress(PAGE)).unwrap();
    assert_eq!(&bytes, b"both");
}

#[test]
fn a_file_that_grows_is_mapped_anew_for_all_its_ranges() {
    let file = memfd("growing", 2);
    let mut table = DmaTable::new();
    small(&mut table, 0, &file);
    let before = table.memory().unwrap();
    before.write_slice(b"old", GuestAddress(8)).unwrap();
    let error = map(&mut table, (8, 1, 2), ReadWrite, Some(&file)).unwrap_err();
    assert!(matches!(error, DmaError::BeyondFile { .. }), "{error}");
    file.set_len(4 * PAGE).unwrap();
    map(&mut table, (8, 2, 2), ReadWrite, Some(&file)).unwrap();
    assert_eq!(mappings("growing").0, 2, "the snapshot keeps the first");
    drop(before);
    assert_eq!(mappings("growing"), (1, true));
    let memory = table.memory().unwrap();
    let mut bytes = [0; 3];
    memory.read_slice(&mut bytes, GuestAddress(8)).unwrap();
    assert_eq!(&bytes, b"old");
    memory
        .write_slice(&[1; 8192], GuestAddress(8 * PAGE))
        .unwrap();
}

#[test]
fn a_snapshot_keeps_its_memory_mapped() {
    let file = memfd("kept", 2);
    let mut table = DmaTable::new();
    map(&mut table, (0, 2, 0), ReadWrite, Some(&file)).unwrap();
    let memory = table.memory().unwrap();
    let copy = memory.clone();
    unmap(&mut table, 0, 2).unwrap();
    assert!(table.memory().is_none());
    drop(table);
    drop(memory);
    copy.write_slice(b"still here", GuestAddress(100)).unwrap();
    assert_eq!(mappings("kept").0, 1);
    drop(copy);
    assert_eq!(mappings("kept").0, 0);
}

#[test]
fn a_file_is_unmapped_with_its_only_range() {
    let file = memfd("unplugged", 8);
    let mut table = DmaTable::new();
    map(&mut table, (0, 8, 0), ReadWrite, Some(&file)).unwrap();
    assert_eq!(mappings("unplugged").0, 1);
    unmap(&mut table, 0, 8).unwrap();
    assert_eq!(mappings("unplugged").0, 0);
}

#[test]
fn a_few_files_stay_mapped_between_small_ranges() {
    let files: Vec<_> = (0..6).map(|n| memfd(&format!("idle{n}"), 8)).collect();
    let mut table = DmaTable::new();
    for file in &files {
        small(&mut table, 0, file);
        unmap(&mut table, 0, 1).unwrap();
    }
    let mapped: Vec<_> = (0..6).map(|n| mappings(&format!("idle{n}")).0).collect();
    assert_eq!(mapped, [0, 0, 1, 1, 1, 1]);
    // A file in use is not among them.
    small(&mut table, 0, &files[2]);
    small(&mut table, 1, &files[0]);
    unmap(&mut table, 1, 1).unwrap();
    let mapped: Vec<_> = (0..6).map(|n| mappings(&format!("idle{n}")).0).collect();
    assert_eq!(mapped, [1, 0, 1, 1, 1, 1]);
    table.unmap(DmaUnmap::All).unwrap();
    assert!((0..6).all(|n| mappings(&format!("idle{n}")).0 == 0));
}

#[test]
fn a_file_that_stays_idle_is_unmapped() {
    let (idle, used) = (memfd("long-idle", 8), memfd("long-used", 8));
    let mut table = DmaTable::new();
    small(&mut table, 0, &idle);
    unmap(&mut table, 0, 1).unwrap();
    for _ in 0..4000 {
        small(&mut table, 0, &used);
        unmap(&mut table, 0, 1).unwrap();
    }
    assert_eq!((mappings("long-idle").0, mappings("long-used").0), (1, 1));
    for _ in 0..200 {
        small(&mut table, 0, &used);
        unmap(&mut table, 0, 1).unwrap();
    }
    assert_eq!((mappings("long-idle").0, mappings("long-used").0), (0, 1));
}

#[test]
fn a_file_in_use_by_pieces_stays() {
    let file = memfd("pieces", 8);
    let mut table = DmaTable::new();
    map(&mut table, (0, 8, 0), ReadWrite, Some(&file)).unwrap();
    for page in [3, 0, 7, 5, 1] {
        unmap(&mut table, page, 1).unwrap();
        assert_eq!(mappings("pieces").0, 1);
    }
    let memory = table.memory().unwrap();
    for page in 0..8 {
        let mapped = memory.check_range(GuestAddress(page * PAGE), 4096, Write);
        assert_eq!(mapped, [2, 4, 6].contains(&page), "{page}");
    }
    drop(memory);
    table.unmap(DmaUnmap::All).unwrap();
    assert_eq!(mappings("pieces").0, 0);
}

#[test]
fn read_only_files_are_mapped_read_only() {
    let file = memfd("read-only", 4);
    let mut table = DmaTable::new();
    let reader = read_only(&file);
    for access in [Write, ReadWrite] {
        let error = map(&mut table, (0, 1, 0), access, Some(&reader)).unwrap_err();
        assert_eq!(error, DmaError::ReadOnly);
        assert_eq!(error.errno(), Errno::ACCESS);
    }
    map(&mut table, (0, 1, 0), Read, Some(&reader)).unwrap();
    map(&mut table, (1, 1, 0), No, Some(&reader)).unwrap();
    assert_eq!(mappings("read-only"), (1, false));
    // A descriptor for writing makes the same mapping writable, and nothing else.
    map(&mut table, (2, 1, 0), ReadWrite, Some(&file)).unwrap();
    assert_eq!(mappings("read-only"), (1, true));
    let memory = table.memory().unwrap();
    assert!(memory.write_slice(&[1], GuestAddress(0)).is_err());
    memory.write_slice(&[1], GuestAddress(2 * PAGE)).unwrap();
    // The right to write is the descriptor's, not the mapping's.
    let result = map(&mut table, (3, 1, 0), ReadWrite, Some(&reader));
    assert_eq!(result, Err(DmaError::ReadOnly));
}

#[test]
fn sealed_files_are_mapped_read_only() {
    let file = memfd("sealed", 4);
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    let mut table = DmaTable::new();
    let result = map(&mut table, (0, 1, 0), ReadWrite, Some(&file));
    assert_eq!(result, Err(DmaError::ReadOnly));
    assert_eq!(mappings("sealed").0, 0);
    map(&mut table, (0, 1, 0), Read, Some(&file)).unwrap();
    assert_eq!(mappings("sealed"), (1, false));
}

#[test]
fn a_mapping_in_use_is_never_replaced_by_a_worse_one() {
    let file = memfd("worse", 2);
    let mut table = DmaTable::new();
    small(&mut table, 0, &file);
    // Longer, but no longer to be mapped for writing.
    file.set_len(4 * PAGE).unwrap();
    fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).unwrap();
    let result = map(&mut table, (1, 1, 3), Read, Some(&file));
    assert_eq!(result, Err(DmaError::FileChanged));
    assert_eq!(mappings("worse"), (1, true));
    table
        .memory()
        .unwrap()
        .write_slice(&[1], GuestAddress(0))
        .unwrap();

    // For writing, but shorter.
    let file = memfd("shorter", 4);
    map(&mut table, (8, 4, 0), Read, Some(&read_only(&file))).unwrap();
    file.set_len(2 * PAGE).unwrap();
    let result = map(&mut table, (1, 1, 0), ReadWrite, Some(&file));
    assert_eq!(result, Err(DmaError::FileChanged));
    assert_eq!(mappings("shorter"), (1, false));
}

#[test]
fn the_number_of_files_is_limited() {
    let mut table = DmaTable::new();
    for number in 0..MAX_FILES as u64 {
        small(&mut table, number, &memfd("many", 4));
    }
    let another = memfd("one-more", 4);
    let error = map(&mut table, (5000, 1, 0), Read, Some(&another)).unwrap_err();
    assert_eq!(error, DmaError::TooManyFiles);
    assert_eq!(error.errno(), Errno::NOSPC);
    unmap(&mut table, 17, 1).unwrap();
    map(&mut table, (5000, 1, 0), Read, Some(&another)).unwrap();
}
