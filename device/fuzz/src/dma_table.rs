// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The DMA table of vfio-user: maps, unmaps and accesses, also through older snapshots.
//!
//! The model is a list of ranges without order that is searched for each byte.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use ringbar_vfio_user::dma::{DmaError, DmaMap, DmaMemory, DmaTable, DmaUnmap, PAGE_SIZE};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::input::Input;

/// Length of a file at first, in pages.
const FILE_PAGES: u64 = 8;

/// Number of files; the last one holds memory of the device itself.
const FILES: usize = 3;
const OWN: usize = FILES - 1;

/// Name of the files, as `/proc/self/maps` shows it.
const NAME: &str = "ringbar-fuzz-dma";

/// Greatest number of bytes of an access.
const MAX_ACCESS: usize = 3 * PAGE_SIZE as usize;

const PERMISSIONS: [Permissions; 4] = [
    Permissions::ReadWrite,
    Permissions::Read,
    Permissions::Write,
    Permissions::No,
];

/// The client's files. They are the same for all inputs, which takes less time.
struct Files {
    files: Vec<File>,
    /// Descriptors of the same files that are open for reading only.
    readers: Vec<File>,
    /// Their content at first.
    content: Vec<Vec<u8>>,
}

impl Files {
    fn new() -> Self {
        let files: Vec<_> = (0..FILES)
            .map(|_| File::from(memfd_create(NAME, MemfdFlags::CLOEXEC).unwrap()))
            .collect();
        let reader = |file: &File| File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Self {
            readers: files.iter().map(|file| reader(file).unwrap()).collect(),
            content: (0..FILES as u64).map(content).collect(),
            files,
        }
    }

    /// All files have their first length and content, which is returned.
    fn reset(&self) -> Vec<Vec<u8>> {
        for (file, content) in self.files.iter().zip(&self.content) {
            file.set_len(content.len() as u64).unwrap();
            file.write_all_at(content, 0).unwrap();
        }
        self.content.clone()
    }
}

/// Content that differs from page to page and from file to file.
fn content(number: u64) -> Vec<u8> {
    let byte = |at: u64| (at ^ (at / PAGE_SIZE * 3 + number * 41)) as u8;
    (0..FILE_PAGES * PAGE_SIZE).map(byte).collect()
}

thread_local! {
    static ALL_FILES: RefCell<Files> = RefCell::new(Files::new());
}

/// A range of the model: first and last address, and where it is in which file.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u64,
    last: u64,
    access: Permissions,
    memory: Option<(usize, u64)>,
}

/// Ranges and, for all of them, the content of files.
#[derive(Clone, Default)]
struct Ranges(Vec<Range>);

impl Ranges {
    fn overlaps(&self, first: u64, last: u64) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|range| range.first <= last && first <= range.last)
    }

    fn unmap(&mut self, first: u64, last: u64) {
        let mut left = Vec::new();
        for range in &self.0 {
            if range.last < first || last < range.first {
                left.push(*range);
                continue;
            }
            if range.first < first {
                left.push(Range {
                    last: first - 1,
                    ..*range
                });
            }
            if last < range.last {
                let skipped = last + 1 - range.first;
                left.push(Range {
                    first: last + 1,
                    memory: range.memory.map(|(file, at)| (file, at + skipped)),
                    ..*range
                });
            }
        }
        self.0 = left;
    }

    /// File and offset of the byte at `address`.
    fn byte(&self, address: u64, access: Permissions) -> Option<(usize, usize)> {
        let mut ranges = self.0.iter();
        let range = ranges.find(|range| range.first <= address && address <= range.last)?;
        let (file, offset) = range.memory?;
        let allowed = range.access.allow(access);
        allowed.then_some((file, (offset + (address - range.first)) as usize))
    }

    /// The same for each of `count` bytes, if all of them allow `access`.
    fn access(
        &self,
        address: u64,
        count: usize,
        access: Permissions,
    ) -> Option<Vec<(usize, usize)>> {
        let address = |n: usize| address.checked_add(n as u64);
        (0..count).map(|n| self.byte(address(n)?, access)).collect()
    }
}

/// Both sides at one moment.
struct Snapshot {
    memory: Option<DmaMemory>,
    ranges: Ranges,
}

struct Run<'a> {
    files: &'a Files,
    table: DmaTable,
    ranges: Ranges,
    snapshots: Vec<Snapshot>,
    content: Vec<Vec<u8>>,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    ALL_FILES.with_borrow(|files| {
        let mut run = Run {
            files,
            table: DmaTable::new(),
            ranges: Ranges::default(),
            snapshots: Vec::new(),
            content: files.reset(),
        };
        let mut input = Input::new(data);
        while !input.is_empty() {
            run.step(&mut input);
        }
        drop(run);
        // Takes long, so not each time.
        if data.len().is_multiple_of(32) {
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            assert!(!maps.contains(NAME), "a file is still mapped:\n{maps}");
        }
    });
}

impl Run<'_> {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=3 => self.map(input),
            4..=5 => self.unmap(input),
            6 if input.u8() < 32 => {
                self.table.unmap(DmaUnmap::All).unwrap();
                self.ranges = Ranges::default();
            }
            6..=7 => self.snapshot(),
            8 => self.grow(input),
            9..=11 => self.read(input),
            12..=14 => self.write(input),
            _ => self.check(input),
        }
        assert_eq!(self.table.len(), self.ranges.0.len());
        let has_memory = self.ranges.0.iter().any(|range| range.memory.is_some());
        assert_eq!(self.table.memory().is_some(), has_memory);
    }

    /// An address, mostly of one of the first or last 64 pages there are.
    fn address(input: &mut Input<'_>) -> u64 {
        match input.u8() {
            0xff => input.u64(),
            page @ 0x80.. => 0u64.wrapping_sub(u64::from(page - 0x7f) * PAGE_SIZE),
            page => u64::from(page % 64) * PAGE_SIZE,
        }
    }

    fn size(input: &mut Input<'_>) -> u64 {
        match input.u8() {
            0xff => input.u64(),
            pages => u64::from(pages % 12) * PAGE_SIZE,
        }
    }

    fn map(&mut self, input: &mut Input<'_>) {
        let (address, size) = (Self::address(input), Self::size(input));
        let offset = match input.u8() {
            0xff => input.u64(),
            page => u64::from(page % 12) * PAGE_SIZE,
        };
        let access = input.choose(&PERMISSIONS);
        let which = usize::from(input.u8());
        let file = (!which.is_multiple_of(8)).then_some(which % FILES);
        let read_only = which >= 192;

        let result = self.table.map(
            DmaMap {
                address,
                size,
                offset,
                access,
            },
            file.map(|file| {
                let files = if read_only {
                    &self.files.readers
                } else {
                    &self.files.files
                };
                OwnedFd::from(files[file].try_clone().unwrap())
            }),
            |file| {
                file.metadata().unwrap().ino() == self.files.files[OWN].metadata().unwrap().ino()
            },
        );
        let file = file.filter(|file| *file != OWN);
        let expected = self.expected(address, size, offset, access, file, read_only);
        // The table may have mapped less of the file than it has now, and with this descriptor it
        // cannot map all of it for writing.
        let has_grown =
            file.is_some_and(|file| self.content[file].len() as u64 > FILE_PAGES * PAGE_SIZE);
        if read_only && has_grown && expected.is_ok() && result == Err(DmaError::FileChanged) {
            return;
        }
        assert_eq!(
            result, expected,
            "{address:#x}+{size:#x}, {offset:#x} of {file:?}"
        );
        if result.is_ok() {
            self.ranges.0.push(Range {
                first: address,
                last: address + (size - 1),
                access,
                memory: file.map(|file| (file, offset)),
            });
        }
    }

    fn expected(
        &self,
        address: u64,
        size: u64,
        offset: u64,
        access: Permissions,
        file: Option<usize>,
        read_only: bool,
    ) -> Result<(), DmaError> {
        let last = last(address, size, offset)?;
        if self.ranges.overlaps(address, last) {
            return Err(DmaError::Overlap { address, size });
        }
        let Some(file) = file else {
            return Ok(());
        };
        let length = self.content[file].len() as u64;
        if u128::from(offset) + u128::from(size) > u128::from(length) {
            return Err(DmaError::BeyondFile {
                offset,
                size,
                length,
            });
        }
        if read_only && access.has_write() {
            return Err(DmaError::ReadOnly);
        }
        Ok(())
    }

    fn unmap(&mut self, input: &mut Input<'_>) {
        let (address, size) = (Self::address(input), Self::size(input));
        let result = self.table.unmap(DmaUnmap::Range { address, size });
        let expected = last(address, size, 0);
        assert_eq!(result, expected.map(|_| ()));
        if let Ok(last) = expected {
            self.ranges.unmap(address, last);
        }
    }

    fn snapshot(&mut self) {
        if self.snapshots.len() == 4 {
            self.snapshots.remove(0);
        }
        self.snapshots.push(Snapshot {
            memory: self.table.memory(),
            ranges: self.ranges.clone(),
        });
    }

    /// A file becomes longer.
    fn grow(&mut self, input: &mut Input<'_>) {
        let file = usize::from(input.u8()) % FILES;
        let length = self.content[file].len() + PAGE_SIZE as usize;
        if length <= 2 * (FILE_PAGES * PAGE_SIZE) as usize {
            self.files.files[file].set_len(length as u64).unwrap();
            self.content[file].resize(length, 0);
        }
    }

    /// Where an access goes to: now, or a snapshot.
    fn target(&self, input: &mut Input<'_>) -> Snapshot {
        let which = usize::from(input.u8());
        match self.snapshots.get(which / 2) {
            Some(snapshot) if which.is_multiple_of(2) => Snapshot {
                memory: snapshot.memory.clone(),
                ranges: snapshot.ranges.clone(),
            },
            _ => Snapshot {
                memory: self.table.memory(),
                ranges: self.ranges.clone(),
            },
        }
    }

    /// Address and number of bytes, mostly at the end of a page.
    fn bytes(input: &mut Input<'_>) -> (u64, usize) {
        let at = Self::address(input).wrapping_add(u64::from(input.u16() % 4096));
        let count = usize::from(input.u16());
        match count % 4 {
            0 => (at | (PAGE_SIZE - 4), count / 4 % 16),
            _ => (at, count % MAX_ACCESS),
        }
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let target = self.target(input);
        let (address, count) = Self::bytes(input);
        let Some(memory) = target.memory else { return };
        let mut bytes = vec![0xee; count];
        let result = memory.read_slice(&mut bytes, GuestAddress(address));
        let expected = target.ranges.access(address, count, Permissions::Read);
        assert_eq!(
            result.is_ok(),
            expected.is_some(),
            "{address:#x}+{count:#x}: {result:?}"
        );
        if let Some(expected) = expected {
            let expected = expected.iter().map(|(file, at)| self.content[*file][*at]);
            assert!(expected.eq(bytes), "{address:#x}+{count:#x}");
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let target = self.target(input);
        let (address, count) = Self::bytes(input);
        let value = input.u8();
        let Some(memory) = target.memory else { return };
        let bytes = Vec::from_iter((0..count).map(|n| value.wrapping_add(n as u8)));
        let result = memory.write_slice(&bytes, GuestAddress(address));
        let expected = target.ranges.access(address, count, Permissions::Write);
        assert_eq!(
            result.is_ok(),
            expected.is_some(),
            "{address:#x}+{count:#x}: {result:?}"
        );
        for ((file, at), byte) in expected.into_iter().flatten().zip(bytes) {
            self.content[file][at] = byte;
        }
    }

    fn check(&mut self, input: &mut Input<'_>) {
        let target = self.target(input);
        let (address, count) = Self::bytes(input);
        let access = input.choose(&PERMISSIONS);
        let Some(memory) = target.memory else { return };
        let result = memory.check_range(GuestAddress(address), count, access);
        let expected = target.ranges.access(address, count, access);
        assert_eq!(
            result,
            expected.is_some(),
            "{address:#x}+{count:#x} {access:?}"
        );
        let slices = memory.get_slices(GuestAddress(address), count, access);
        let lengths = slices.map(|slices| slices.map(|slice| slice.unwrap().len()).sum::<usize>());
        assert_eq!(lengths.ok(), result.then_some(count));
    }
}

/// The last address of a range, if its numbers fit each other.
fn last(address: u64, size: u64, offset: u64) -> Result<u64, DmaError> {
    if size == 0 {
        return Err(DmaError::Empty { address });
    }
    if [address, size, offset]
        .iter()
        .any(|number| number % PAGE_SIZE != 0)
    {
        return Err(DmaError::Misaligned {
            address,
            size,
            offset,
        });
    }
    let end = u128::from(address) + u128::from(size);
    if end > 1 << 64 {
        return Err(DmaError::Overflow { address, size });
    }
    Ok((end - 1) as u64)
}
