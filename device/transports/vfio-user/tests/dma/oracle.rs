// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random messages and accesses, compared with the IOMMU of the `vm-memory` crate.
//!
//! Both sides have files of their own, which must have the same content in the end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{RwLock, RwLockReadGuard};

use proptest::prelude::*;
use ringbar_vfio_user::dma::{DmaError, DmaTable, DmaUnmap};
use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, Iommu, IommuMemory, Iotlb,
    Permissions,
};

use crate::support::{PAGE, map, memfd, unmap};

const FILES: usize = 3;
const FILE_PAGES: u64 = 8;
/// Pages of the address space that are used.
const SPACE: u64 = 24;
/// Distance of the files in the physical memory of the oracle, in pages.
const STRIDE: u64 = 0x100;

#[derive(Debug, Default)]
struct Tlb(RwLock<Iotlb>);

impl Iommu for Tlb {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, Error> {
        let lookup = Iotlb::lookup(self.0.read().unwrap(), iova, length, access);
        lookup.map_err(|fails| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: format!("{fails:?}"),
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Pages: address, size, offset. The file, if any.
    Map(u64, u64, u64, Permissions, Option<usize>),
    Unmap(u64, u64),
    UnmapAll,
    /// Bytes from here on: address and count.
    Read(u64, usize),
    Write(u64, usize, u8),
    Load(u64),
    Store(u64, u32),
    Check(u64, usize, Permissions),
}

fn access() -> impl Strategy<Value = Permissions> {
    use Permissions::{No, Read, ReadWrite, Write};
    prop_oneof![1 => Just(No), 2 => Just(Read), 2 => Just(Write), 5 => Just(ReadWrite)]
}

fn step() -> impl Strategy<Value = Step> {
    let address = 0..SPACE * PAGE;
    // Often close to the end of a page.
    let address = prop_oneof![
        address.clone(),
        address.prop_map(|address| (address | 0xfff).saturating_sub(address % 16)),
    ];
    let count = prop_oneof![1..64usize, 1..20_000usize];
    let file = prop_oneof![1 => Just(None), 9 => (0..FILES).prop_map(Some)];
    let offset = 0..FILE_PAGES;
    prop_oneof![
        6 => (0..SPACE, 1..6u64, offset, access(), file)
            .prop_map(|(a, s, o, access, file)| Step::Map(a, s, o, access, file)),
        2 => (0..SPACE, 1..8u64).prop_map(|(a, s)| Step::Unmap(a, s)),
        1 => (0..20u8).prop_map(|n| if n == 0 { Step::UnmapAll } else { Step::Unmap(0, 1) }),
        3 => (address.clone(), count.clone()).prop_map(|(a, c)| Step::Read(a, c)),
        3 => (address.clone(), count.clone(), any::<u8>()).prop_map(|(a, c, v)| Step::Write(a, c, v)),
        1 => address.clone().prop_map(|a| Step::Load(a & !3)),
        1 => (address.clone(), any::<u32>()).prop_map(|(a, v)| Step::Store(a & !3, v)),
        2 => (address, count, access()).prop_map(|(a, c, access)| Step::Check(a, c, access)),
    ]
}

/// The oracle, and which pages are mapped to anything.
struct Oracle {
    memory: IommuMemory<GuestMemoryMmap, Tlb>,
    mapped: [bool; (SPACE + 8) as usize],
}

impl Oracle {
    fn new(files: &[File]) -> Self {
        let ranges = files.iter().enumerate().map(|(n, file)| {
            let file = FileOffset::new(file.try_clone().unwrap(), 0);
            let start = GuestAddress(n as u64 * STRIDE * PAGE);
            (start, (FILE_PAGES * PAGE) as usize, Some(file))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        Self {
            memory: IommuMemory::new(memory, Tlb::default(), true, ()),
            mapped: [false; (SPACE + 8) as usize],
        }
    }

    /// Whether it could be mapped; as [`DmaTable::map`].
    fn map(
        &mut self,
        address: u64,
        pages: u64,
        offset: u64,
        access: Permissions,
        file: Option<usize>,
    ) -> bool {
        let range = address as usize..(address + pages) as usize;
        if self.mapped[range.clone()].contains(&true)
            || file.is_some() && offset + pages > FILE_PAGES
        {
            return false;
        }
        self.mapped[range].fill(true);
        if let Some(file) = file {
            let target = GuestAddress((file as u64 * STRIDE + offset) * PAGE);
            let mut tlb = self.memory.iommu().0.write().unwrap();
            let size = (pages * PAGE) as usize;
            tlb.set_mapping(GuestAddress(address * PAGE), target, size, access)
                .unwrap();
        }
        true
    }

    fn unmap(&mut self, address: u64, pages: u64) {
        self.mapped[address as usize..(address + pages) as usize].fill(false);
        let mut tlb = self.memory.iommu().0.write().unwrap();
        tlb.invalidate_mapping(GuestAddress(address * PAGE), (pages * PAGE) as usize);
    }
}

/// What an access returns: the same type for both sides.
fn access_memory(memory: &impl GuestMemory, step: &Step) -> Option<Vec<u8>> {
    use std::sync::atomic::Ordering::Relaxed;
    match *step {
        Step::Read(address, count) => {
            let mut bytes = vec![0; count];
            let result = memory.read_slice(&mut bytes, GuestAddress(address));
            result.ok().map(|()| bytes)
        }
        Step::Write(address, count, value) => {
            let result = memory.write_slice(&vec![value; count], GuestAddress(address));
            result.ok().map(|()| Vec::new())
        }
        Step::Load(address) => {
            let value = memory.load::<u32>(GuestAddress(address), Relaxed);
            value.ok().map(|value| value.to_le_bytes().to_vec())
        }
        Step::Store(address, value) => {
            let result = memory.store(value, GuestAddress(address), Relaxed);
            result.ok().map(|()| Vec::new())
        }
        Step::Check(address, count, access) => {
            let result = memory.check_range(GuestAddress(address), count, access);
            result.then(Vec::new)
        }
        Step::Map(..) | Step::Unmap(..) | Step::UnmapAll => None,
    }
}

proptest! {
    #[test]
    fn the_table_does_what_an_iommu_does(steps in prop::collection::vec(step(), 1..80)) {
        let make = |side: &str| -> Vec<_> {
            (0..FILES).map(|n| memfd(&format!("oracle-{side}{n}"), FILE_PAGES)).collect()
        };
        let (files, oracle_files) = (make("a"), make("b"));
        let mut table = DmaTable::new();
        let mut oracle = Oracle::new(&oracle_files);
        for step in &steps {
            match *step {
                Step::Map(address, pages, offset, access, file) => {
                    let result = map(&mut table, (address, pages, offset), access, file.map(|n| &files[n]));
                    let expected = oracle.map(address, pages, offset, access, file);
                    prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
                    let known = matches!(
                        result,
                        Ok(()) | Err(DmaError::Overlap { .. } | DmaError::BeyondFile { .. })
                    );
                    prop_assert!(known, "{:?}", result);
                }
                Step::Unmap(address, pages) => {
                    unmap(&mut table, address, pages).unwrap();
                    oracle.unmap(address, pages);
                }
                Step::UnmapAll => {
                    table.unmap(DmaUnmap::All).unwrap();
                    oracle.unmap(0, SPACE + 8);
                }
                _ => {
                    let found = table.memory().and_then(|memory| access_memory(&memory, step));
                    prop_assert_eq!(found, access_memory(&oracle.memory, step));
                }
            }
        }
        for (file, other) in files.iter().zip(&oracle_files) {
            let mut bytes = [0; (FILE_PAGES * PAGE) as usize];
            let mut expected = bytes;
            file.read_exact_at(&mut bytes, 0).unwrap();
            other.read_exact_at(&mut expected, 0).unwrap();
            prop_assert!(bytes == expected, "a file differs");
        }
    }
}
