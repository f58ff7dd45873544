// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Accesses to the memory of a table.

use std::sync::atomic::Ordering;

use ringbar_vfio_user::dma::{DmaMemory, DmaTable};
use vm_memory::Permissions::{No, Read, ReadWrite, Write};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::support::{PAGE, map, memfd};

/// One page for each kind of access from page 1 on, in this order, and then nothing.
fn one_of_each() -> DmaMemory {
    let file = memfd("one-of-each", 8);
    let mut table = DmaTable::new();
    for (page, access) in [No, Read, Write, ReadWrite].into_iter().enumerate() {
        let page = page as u64;
        map(&mut table, (page + 1, 1, page), access, Some(&file)).unwrap();
    }
    table.memory().unwrap()
}

fn page(number: u64) -> GuestAddress {
    GuestAddress(number * PAGE)
}

/// Number of bytes of each slice; none if the access fails.
fn slices(
    memory: &DmaMemory,
    address: u64,
    count: usize,
    access: Permissions,
) -> Option<Vec<usize>> {
    let slices = memory
        .get_slices(GuestAddress(address), count, access)
        .ok()?;
    Some(slices.map(|slice| slice.unwrap().len()).collect())
}

#[test]
fn permissions_are_honoured() {
    let memory = one_of_each();
    let allowed = |access| (0..6).filter(move |p| memory.check_range(page(*p), 4096, access));
    assert_eq!(Vec::from_iter(allowed.clone()(No)), [1, 2, 3, 4]);
    assert_eq!(Vec::from_iter(allowed.clone()(Read)), [2, 4]);
    assert_eq!(Vec::from_iter(allowed.clone()(Write)), [3, 4]);
    assert_eq!(Vec::from_iter(allowed(ReadWrite)), [4]);

    let memory = one_of_each();
    assert!(memory.write_obj(1u32, page(2)).is_err());
    assert!(memory.read_obj::<u32>(page(3)).is_err());
    assert!(memory.store(1u32, page(2), Ordering::Relaxed).is_err());
    assert!(memory.load::<u32>(page(3), Ordering::Relaxed).is_err());
    memory.write_obj(1u32, page(3)).unwrap();
    memory.read_obj::<u32>(page(2)).unwrap();
}

#[test]
fn an_access_spans_adjacent_ranges() {
    let memory = one_of_each();
    assert_eq!(
        slices(&memory, 3 * PAGE + 4000, 200, Write),
        Some(vec![96, 104])
    );
    assert_eq!(
        slices(&memory, 3 * PAGE, 8192, Write),
        Some(vec![4096, 4096])
    );
    // One of both does not allow it, or is not there: nothing is accessed.
    assert_eq!(slices(&memory, 3 * PAGE + 4000, 200, Read), None);
    assert_eq!(slices(&memory, 4 * PAGE + 4000, 97, Write), None);
    assert!(
        memory
            .write_slice(&[1; 97], GuestAddress(4 * PAGE + 4000))
            .is_err()
    );
    let mut bytes = [9; 96];
    memory
        .read_slice(&mut bytes, GuestAddress(4 * PAGE + 4000))
        .unwrap();
    assert_eq!(bytes, [0; 96]);
    // A number in two ranges is read as bytes, but not as one.
    memory
        .write_obj(u64::MAX, GuestAddress(4 * PAGE - 4))
        .unwrap();
    assert!(
        memory
            .store(0u64, GuestAddress(4 * PAGE - 4), Ordering::Relaxed)
            .is_err()
    );
}

#[test]
fn an_empty_access_succeeds_anywhere() {
    let memory = one_of_each();
    for address in [0, PAGE, u64::MAX] {
        assert!(memory.check_range(GuestAddress(address), 0, ReadWrite));
        assert_eq!(slices(&memory, address, 0, ReadWrite), Some(vec![]));
    }
}

#[test]
fn there_is_no_physical_memory() {
    assert!(one_of_each().physical_memory().is_none());
}

#[test]
fn workers_may_share_it() {
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    shared(&one_of_each());
}
