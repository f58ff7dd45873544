// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The part of guest memory that the driver of one queue has: rings, and buffers.
//!
//! What the device may write is apart from descriptors and headers, so that the driver knows each of
//! them, also a driver that means harm. It never describes the memory of another driver.
//!
//! | offset | content |
//! |---|---|
//! | 0 | descriptor table |
//! | 0x400, 0x800 | available and used ring |
//! | 0x1000 | blocks for the device to read |
//! | 0x2000 | bytes for the device to write |
//! | 0x3000 | no memory |
//! | 0x4000 | indirect tables |
//! | 0x5000 | no memory up to the next area |

use ringbar_engine::QueueSetup;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest::RawDescriptor;

/// Entries of a ring. With fewer than 16 a worker of a single queue reads no clock.
pub(super) const SIZE: u16 = 8;

/// Bytes of the parts of an area, and from one area to the next.
const BYTES: usize = 0x3000;
const TABLES_BYTES: usize = 0x1000;
const STRIDE: u64 = 0x1_0000;

const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const READABLE: u64 = 0x1000;
const WRITABLE: u64 = 0x2000;
const TABLES: u64 = 0x4000;

/// Bytes of a block and of an indirect table, and their numbers.
pub(super) const BLOCK: u64 = 64;
pub(super) const BLOCKS: u64 = 64;
const TABLE: u64 = 16 * SIZE as u64;
pub(super) const INDIRECT_TABLES: u64 = 16;

/// The driver's side of a queue.
pub(super) struct Area {
    memory: GuestMemoryMmap,
    pub(super) base: u64,
    next_available: u16,
    pub(super) next_used: u16,
}

/// Guest memory with areas for so many queues.
pub(super) fn memory(queues: u16) -> GuestMemoryMmap {
    let area = |queue| {
        let base = u64::from(queue) * STRIDE;
        [(base, BYTES), (base + TABLES, TABLES_BYTES)]
    };
    let ranges: Vec<_> = (0..queues)
        .flat_map(area)
        .map(|(start, bytes)| (GuestAddress(start), bytes))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

impl Area {
    pub(super) fn new(memory: &GuestMemoryMmap, queue: u16) -> Self {
        let area = Self {
            memory: memory.clone(),
            base: u64::from(queue) * STRIDE,
            next_available: 0,
            next_used: 0,
        };
        area.put(0, &[0; BYTES]);
        area.put(TABLES, &[0; TABLES_BYTES]);
        area
    }

    /// Empties the rings. Returns the setup of a queue that starts from the beginning.
    pub(super) fn start(&mut self, event_idx: bool) -> QueueSetup {
        (self.next_available, self.next_used) = (0, 0);
        self.put(AVAILABLE, &[0; 4 + 2 * SIZE as usize + 2]);
        self.put(USED, &[0; 4 + 8 * SIZE as usize + 2]);
        QueueSetup {
            size: SIZE,
            desc_table: self.base,
            avail_ring: self.base + AVAILABLE,
            used_ring: self.base + USED,
            next_avail: 0,
            next_used: 0,
            event_idx,
        }
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        let at = GuestAddress(self.base + offset);
        self.memory.write_slice(bytes, at).unwrap();
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let at = GuestAddress(self.base + offset);
        self.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    /// Address of a block that the device may read.
    pub(super) fn readable(&self, block: u64) -> u64 {
        self.base + READABLE + block % BLOCKS * BLOCK
    }

    /// Address of bytes that the device may write, with room for at least 256.
    pub(super) fn writable(&self, block: u64) -> u64 {
        self.base + WRITABLE + block % (BLOCKS - 4) * BLOCK
    }

    /// The last bytes that the device may write.
    pub(super) const fn last_writable(&self) -> u64 {
        self.base + BYTES as u64 - 8
    }

    pub(super) fn indirect_table(&self, number: u64) -> u64 {
        self.base + TABLES + number % INDIRECT_TABLES * TABLE
    }

    pub(super) fn put_block(&self, block: u64, bytes: &[u8]) {
        self.put(self.readable(block) - self.base, bytes);
    }

    pub(super) fn put_descriptor(&self, table: u64, index: u16, descriptor: RawDescriptor) {
        let offset = table - self.base + 16 * u64::from(index);
        self.put(offset, &descriptor.to_bytes());
    }

    /// Puts a head into the available ring, and makes it known.
    pub(super) fn make_available(&mut self, head: u16) {
        let place = u64::from(self.next_available % SIZE);
        self.put(AVAILABLE + 4 + 2 * place, &head.to_le_bytes());
        self.set_available(self.next_available.wrapping_add(1));
    }

    pub(super) fn set_available(&mut self, index: u16) {
        self.next_available = index;
        self.put(AVAILABLE + 2, &index.to_le_bytes());
    }

    pub(super) const fn available(&self) -> u16 {
        self.next_available
    }

    /// From which used entry on the driver wants an interrupt.
    pub(super) fn want_interrupt_from(&self, event: u16) {
        let place = AVAILABLE + 4 + 2 * u64::from(SIZE);
        self.put(place, &event.to_le_bytes());
    }

    /// The used index as the device has written it.
    pub(super) fn used(&self) -> u16 {
        u16::from_le_bytes(self.get(USED + 2))
    }

    /// Takes the next used entry: head and length.
    pub(super) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used() == self.next_used {
            return None;
        }
        let place = USED + 4 + 8 * u64::from(self.next_used % SIZE);
        self.next_used = self.next_used.wrapping_add(1);
        let head = u32::from_le_bytes(self.get(place));
        Some((head, u32::from_le_bytes(self.get(place + 4))))
    }

    /// What the device has written at an address of [`Self::writable`].
    pub(super) fn written(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Clears what an earlier request has left there.
    pub(super) fn clear(&self, address: u64, count: usize) {
        self.put(address - self.base, &vec![0xee; count]);
    }
}
