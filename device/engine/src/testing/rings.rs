// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's side of a virtqueue, in guest memory.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::wait_until;
use crate::ring::QueueSetup;

/// The rings of one queue and the buffers of its requests, in a part of guest memory of their
/// own.
pub struct Rings {
    mem: GuestMemoryMmap,
    base: u64,
    next_avail: u16,
    next_used: u16,
}

impl Rings {
    /// Entries of the ring.
    pub const SIZE: u16 = 64;
    /// Bytes of guest memory for each queue.
    pub const AREA: u64 = 0x1_0000;
    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const INPUT: u64 = 0x4000;
    const OUTPUT: u64 = 0x8000;
    /// Greatest number of bytes in each direction of a request.
    pub const STRIDE: u64 = 64;

    /// For queue number `index`, whose part of `mem` begins at [`Self::AREA`] times that.
    pub fn new(mem: GuestMemoryMmap, index: usize) -> Self {
        Self {
            mem,
            base: Self::AREA * index as u64,
            next_avail: 0,
            next_used: 0,
        }
    }

    /// The same rings in a copy of guest memory.
    pub const fn moved_to(&self, mem: GuestMemoryMmap) -> Self {
        Self { mem, ..*self }
    }

    /// Empties the rings, as a driver does that starts anew.
    pub fn clear(&mut self) {
        (self.next_avail, self.next_used) = (0, 0);
        self.put([0; 0x800], Self::AVAIL);
        self.put([0; 0x800], Self::USED);
    }

    /// Has the rings be at this index, as if all requests before it were completed.
    pub fn skip_to(&mut self, index: u16) {
        (self.next_avail, self.next_used) = (index, index);
        self.put(index.to_le_bytes(), Self::AVAIL + 2);
        self.put(index.to_le_bytes(), Self::USED + 2);
    }

    /// The setup of a queue that starts from the beginning.
    pub fn setup(&self) -> QueueSetup {
        QueueSetup {
            size: Self::SIZE,
            desc_table: self.base,
            avail_ring: self.base + Self::AVAIL,
            used_ring: self.base + Self::USED,
            next_avail: 0,
            next_used: 0,
            event_idx: true,
        }
    }

    /// All of the queue's part of guest memory.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::AREA as usize];
        self.mem
            .read_slice(&mut bytes, GuestAddress(self.base))
            .unwrap();
        bytes
    }

    fn put<const N: usize>(&self, bytes: [u8; N], at: u64) {
        self.mem
            .write_slice(&bytes, GuestAddress(self.base + at))
            .unwrap();
    }

    fn get16(&self, at: u64) -> u16 {
        self.mem
            .load::<u16>(GuestAddress(self.base + at), Ordering::Acquire)
            .unwrap()
    }

    /// As [`Self::put_request_in`], in one buffer after the other. Returns the request's number.
    pub fn put_request(&mut self, input: &[u8], output: u64) -> u16 {
        let number = self.next_avail;
        self.put_request_in(number % (Self::SIZE / 2), input, output);
        number
    }

    /// Makes a request available without a notification: a device-readable buffer that holds
    /// `input`, and a device-writable one of `output` bytes; both are number `at` of half as
    /// many as the ring has entries, and not in use.
    pub fn put_request_in(&mut self, at: u16, input: &[u8], output: u64) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        // Two descriptors each.
        let at = u64::from(at);
        let length = input.len() as u64;
        assert!(length <= Self::STRIDE && output <= Self::STRIDE);
        let readable = Self::INPUT + Self::STRIDE * at;
        let writable = Self::OUTPUT + Self::STRIDE * at;
        self.mem
            .write_slice(input, GuestAddress(self.base + readable))
            .unwrap();
        self.put([0xee; Self::STRIDE as usize], writable);
        for (index, addr, len, flags) in [
            (2 * at, readable, length, NEXT),
            (2 * at + 1, writable, output, WRITE),
        ] {
            let descriptor = 16 * index;
            self.put((self.base + addr).to_le_bytes(), descriptor);
            self.put((len as u32).to_le_bytes(), descriptor + 8);
            self.put(flags.to_le_bytes(), descriptor + 12);
            self.put((index as u16 + 1).to_le_bytes(), descriptor + 14);
        }
        self.put_head(2 * at as u16);
    }

    /// Makes the chain at this descriptor available.
    pub fn put_head(&mut self, head: u16) {
        let entry = u64::from(self.next_avail % Self::SIZE);
        self.put(head.to_le_bytes(), Self::AVAIL + 4 + 2 * entry);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.mem
            .store(
                self.next_avail,
                GuestAddress(self.base + Self::AVAIL + 2),
                Ordering::Release,
            )
            .unwrap();
    }

    /// Whether the device asks to be notified of the last entry that was made available.
    pub fn wants_bell(&self) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        let event = self.get16(Self::USED + 4 + 8 * u64::from(Self::SIZE));
        event == self.next_avail.wrapping_sub(1)
    }

    /// Whether the device asks to be notified of the next entry, as it does before it sleeps.
    pub fn asks_for_bell(&self) -> bool {
        self.get16(Self::USED + 4 + 8 * u64::from(Self::SIZE)) == self.next_avail
    }

    /// Number of requests that are used.
    pub fn used(&self) -> u16 {
        self.get16(Self::USED + 2)
    }

    /// Whether there is a used entry that was not taken.
    pub fn has_used(&self) -> bool {
        self.used() != self.next_used
    }

    /// Writes the index of the used ring, as only a hostile driver does.
    pub fn set_used(&self, index: u16) {
        self.put(index.to_le_bytes(), Self::USED + 2);
    }

    /// Waits for the next used entry; returns its id, which may be of no descriptor.
    #[track_caller]
    pub fn wait_id(&mut self) -> u32 {
        wait_until("a request is used", || self.used() != self.next_used);
        let entry = u64::from(self.next_used % Self::SIZE);
        let at = self.base + Self::USED + 4 + 8 * entry;
        let id: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        // Asks for an interrupt at the next one.
        let event = Self::AVAIL + 4 + 2 * u64::from(Self::SIZE);
        self.put(self.next_used.to_le_bytes(), event);
        u32::from_le(id)
    }

    /// Waits for the next used entry; returns the number of its buffers, and what the device
    /// has written.
    #[track_caller]
    pub fn wait(&mut self) -> (u16, Vec<u8>) {
        let head = self.wait_id();
        let at = self.base + Self::OUTPUT + Self::STRIDE * u64::from(head / 2);
        let mut output = vec![0; Self::STRIDE as usize];
        self.mem.read_slice(&mut output, GuestAddress(at)).unwrap();
        // A head is an index of 16 bits.
        ((head / 2) as u16, output)
    }
}
