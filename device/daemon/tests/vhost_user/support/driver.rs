// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's side of a virtqueue.

use std::sync::atomic::{Ordering, fence};

use ringbar_spec::{Opcode, RequestHeader, RequestStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::TEST_TIMEOUT;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Number of descriptors of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// A raw descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

pub const fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}

/// A virtqueue, and the memory for one request at a time beside it.
pub struct Queue {
    mem: GuestMemoryMmap,
    base: u64,
    pub kick: EventFd,
    pub call: EventFd,
    added: u16,
    used: u16,
}

impl Queue {
    /// Bytes of guest memory that a queue takes.
    pub const FOOTPRINT: u64 = 0x80_0000;

    /// A queue in the `FOOTPRINT` bytes from `base` on.
    pub fn new(mem: &GuestMemoryMmap, base: u64) -> Self {
        Self {
            mem: mem.clone(),
            base,
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
            call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
            added: 0,
            used: 0,
        }
    }

    pub const fn table(&self) -> u64 {
        self.base
    }

    pub const fn avail(&self) -> u64 {
        self.base + 0x4000
    }

    pub const fn used_ring(&self) -> u64 {
        self.base + 0x8000
    }

    /// Memory for headers, statuses and tables of the test.
    pub const fn scratch(&self) -> u64 {
        self.base + 0x1_0000
    }

    /// Memory for data: 4 MiB.
    pub const fn data(&self) -> u64 {
        self.base + 0x10_0000
    }

    /// Empties the rings, as a driver does after a reset.
    pub fn clear(&mut self) {
        self.put(self.base, &vec![0; 0x1_0000]);
        self.added = 0;
        self.used = 0;
    }

    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mem.read_slice(&mut out, GuestAddress(addr)).unwrap();
        out
    }

    fn put_u16(&self, addr: u64, value: u16) {
        self.put(addr, &value.to_le_bytes());
    }

    fn get_u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.get(addr, 2).try_into().unwrap())
    }

    /// Writes descriptors into the queue's table, from index `at` on.
    pub fn put_table(&self, at: u16, table: &[Desc]) {
        for (i, d) in table.iter().enumerate() {
            let mut raw = [0; 16];
            raw[0..8].copy_from_slice(&d.addr.to_le_bytes());
            raw[8..12].copy_from_slice(&d.len.to_le_bytes());
            raw[12..14].copy_from_slice(&d.flags.to_le_bytes());
            raw[14..16].copy_from_slice(&d.next.to_le_bytes());
            self.put(self.table() + 16 * (u64::from(at) + i as u64), &raw);
        }
    }

    /// Makes the chain at `head` available, without a kick.
    pub fn add(&mut self, head: u16) {
        self.add_all([head]);
    }

    /// Makes the chains at `heads` available at once, without a kick.
    pub fn add_all(&mut self, heads: impl IntoIterator<Item = u16>) {
        for head in heads {
            let slot = u64::from(self.added % QUEUE_SIZE);
            self.put_u16(self.avail() + 4 + 2 * slot, head);
            self.added = self.added.wrapping_add(1);
        }
        self.set_available(self.added);
    }

    /// Sets the available index to any value.
    pub fn set_available(&mut self, index: u16) {
        self.want_interrupt();
        self.put_u16(self.avail() + 2, index);
    }

    /// Asks for an interrupt with the next used entry.
    pub fn want_interrupt(&self) {
        self.put_u16(self.avail() + 4 + 2 * u64::from(QUEUE_SIZE), self.used);
        fence(Ordering::SeqCst);
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Waits for an interrupt; returns the number of interrupts so far.
    #[track_caller]
    pub fn wait_interrupt(&self) -> u64 {
        let timeout = Timespec {
            tv_sec: TEST_TIMEOUT.as_secs() as i64,
            tv_nsec: 0,
        };
        // SAFETY: the eventfd stays open for as long as `self` is borrowed.
        let fd = unsafe {
            rustix::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.call))
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no interrupt");
        self.call.read().unwrap()
    }

    /// How many entries the device has used since the queue was cleared.
    pub fn used_count(&self) -> u16 {
        self.get_u16(self.used_ring() + 2)
    }

    /// The next used entry, if there is one: head and length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_count() == self.used {
            return None;
        }
        fence(Ordering::SeqCst);
        let slot = u64::from(self.used % QUEUE_SIZE);
        let raw = self.get(self.used_ring() + 4 + 8 * slot, 8);
        self.used = self.used.wrapping_add(1);
        Some((
            u32::from_le_bytes(raw[0..4].try_into().unwrap()),
            u32::from_le_bytes(raw[4..8].try_into().unwrap()),
        ))
    }

    /// Submits the chain at descriptor 0 and waits for its end.
    #[track_caller]
    pub fn run(&mut self, table: &[Desc]) -> u32 {
        self.put_table(0, table);
        self.add(0);
        self.kick();
        loop {
            if let Some((head, len)) = self.take_used() {
                assert_eq!(head, 0);
                // An interrupt so far belongs to this request.
                let _ = self.call.read();
                return len;
            }
            self.wait_interrupt();
        }
    }

    pub fn header_at(&self) -> u64 {
        self.scratch()
    }

    pub fn status_at(&self) -> u64 {
        self.scratch() + 0x100
    }

    pub fn status(&self) -> Option<RequestStatus> {
        RequestStatus::parse(self.get(self.status_at(), 16)[..].try_into().unwrap())
    }

    /// Puts a header in its place and an unwritten status in the other.
    pub fn put_header(&self, opcode: Opcode, flags: u16, offset: u64, length: u64) {
        let header = RequestHeader {
            opcode,
            flags,
            offset,
            length,
            argument: 0,
        };
        self.put_request(&header);
    }

    fn put_request(&self, header: &RequestHeader) {
        self.put(self.header_at(), &header.to_bytes());
        self.put(self.status_at(), &RequestStatus::UNWRITTEN);
    }

    fn transfer(&mut self, data_flags: u16, data_at: u64, len: usize) -> RequestStatus {
        self.run(&[
            desc(self.header_at(), 32, NEXT, 1),
            desc(data_at, len as u32, NEXT | data_flags, 2),
            desc(self.status_at(), 16, WRITE, 0),
        ]);
        self.status().expect("no status")
    }

    /// Writes to the device memory.
    #[track_caller]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> RequestStatus {
        self.put(self.data(), data);
        self.put_header(Opcode::Write, 0, offset, data.len() as u64);
        self.transfer(0, self.data(), data.len())
    }

    /// Reads from the device memory.
    #[track_caller]
    pub fn read(&mut self, offset: u64, len: usize) -> (RequestStatus, Vec<u8>) {
        let at = self.data();
        let status = self.read_to(offset, at, len);
        (status, self.get(at, len))
    }

    /// Reads from the device memory to any address.
    #[track_caller]
    pub fn read_to(&mut self, offset: u64, addr: u64, len: usize) -> RequestStatus {
        self.put_header(Opcode::Read, 0, offset, len as u64);
        self.transfer(WRITE, addr, len)
    }

    /// A request without data.
    #[track_caller]
    pub fn command(&mut self, opcode: Opcode) -> RequestStatus {
        self.execute(&RequestHeader::command(opcode, 0, 0, 0))
    }

    /// A request without data, with any header.
    #[track_caller]
    pub fn execute(&mut self, header: &RequestHeader) -> RequestStatus {
        self.put_request(header);
        self.run(&[
            desc(self.header_at(), 32, NEXT, 1),
            desc(self.status_at(), 16, WRITE, 0),
        ]);
        self.status().expect("no status")
    }
}
