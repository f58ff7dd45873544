// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver that puts wrong rings, chains and requests together, from random numbers that are the
//! same in every run.
//!
//! The device may do to the guest's memory whatever its driver asks for. So that the guest
//! survives, everything that the device may write to, and each table of descriptors, is in the
//! test's own memory, or where there is none.

use ringbar_agent_protocol::machine::Transport;
use ringbar_spec::{FIRST_IO_QUEUE, Opcode, RequestHeader, RequestStatus};

use super::function::{Function, common};
use super::memory::{BYTES, Memory};
use crate::case::{During, Verdict};
use crate::pattern::Random;

/// Bits of the device status.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Bit of `VIRTIO_F_VERSION_1` in the second half of the features.
const VERSION_1: u32 = 1;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const DESCRIPTOR: usize = 16;

/// Greatest number of entries of a ring that this driver fills.
const MAX_SIZE: u16 = 256;

/// Number of queues that this driver sets up. Each has a part of the first half of the memory,
/// with tables and rings. Data is in the second half.
const QUEUES: u16 = 6;
const PART: usize = 0x1_0000;
const AVAILABLE: usize = 0x4000;
const USED: usize = 0x5000;
const INDIRECT_TABLE: usize = 0x8000;
const DATA: usize = BYTES / 2;

/// What a driver has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) resets: u64,
    pub(super) doorbells: u64,
    pub(super) entries: u64,
    pub(super) used: u64,
}

pub(super) struct Driver<'a> {
    function: &'a Function,
    memory: &'a Memory,
    /// Whether rings may be where there is no memory, or misaligned.
    rings_anywhere: bool,
    random: Random,
    next_available: [u16; QUEUES as usize],
    pub(super) counts: Counts,
}

impl<'a> Driver<'a> {
    /// Over vhost-user all rings are aligned and in memory. The library of the device answers a
    /// message about any other ring by the end of the connection, and QEMU 11.1.3 aborts then.
    pub(super) fn new(function: &'a Function, memory: &'a Memory, transport: Transport) -> Self {
        Self {
            function,
            memory,
            rings_anywhere: transport == Transport::VfioUser,
            random: Random::new(0),
            next_available: [0; QUEUES as usize],
            counts: Counts::default(),
        }
    }

    /// Starts the device, does `actions` things, and resets it.
    pub(super) fn round(&mut self, seed: u64, actions: u32) -> Verdict {
        self.random = Random::new(seed);
        self.reset()?;
        self.start();
        for action in 0..actions {
            self.act().during(|| format!("action {action}"))?;
        }
        for queue in 0..QUEUES {
            self.counts.used += u64::from(self.memory.load16(self.part(queue) + USED + 2));
        }
        Ok(())
    }

    fn reset(&mut self) -> Verdict {
        self.counts.resets += 1;
        self.next_available = [0; QUEUES as usize];
        self.function.reset()
    }

    fn one_of(&mut self, number: u64) -> bool {
        self.random.below(number) == 0
    }

    fn any(&mut self) -> u64 {
        self.random.below(1 << 32) << 32 | self.random.below(1 << 32)
    }

    const fn part(&self, queue: u16) -> usize {
        queue as usize * PART
    }

    /// An address where the device finds no memory.
    fn nowhere(&mut self) -> u64 {
        let behind = self.memory.end_of_ram;
        match self.random.below(4) {
            0 => behind + self.random.below(1 << 20),
            1 => u64::MAX - self.random.below(1 << 16),
            2 => (1 << 45) + self.any() % (1 << 44),
            _ => behind,
        }
    }

    fn start(&mut self) {
        let function = self.function;
        function.write8(common::STATUS, ACKNOWLEDGE);
        function.write8(common::STATUS, ACKNOWLEDGE | DRIVER);
        for half in 0..2 {
            function.write32(common::DEVICE_FEATURE_SELECT, half);
            let offered = function.read32(common::DEVICE_FEATURE);
            let mut accepted = match half {
                0 if self.one_of(2) => offered,
                0 => offered & self.any() as u32,
                _ => offered & VERSION_1,
            };
            if self.one_of(16) {
                accepted |= self.any() as u32;
            }
            function.write32(common::DRIVER_FEATURE_SELECT, half);
            function.write32(common::DRIVER_FEATURE, accepted);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        function.write8(common::STATUS, status);
        let queues = function.read16(common::NUM_QUEUES).min(QUEUES);
        for queue in 0..queues {
            if !self.one_of(8) {
                self.set_up(queue);
            }
        }
        function.write8(common::STATUS, status | DRIVER_OK);
    }

    /// Sets a queue up, mostly well.
    fn set_up(&mut self, queue: u16) {
        let function = self.function;
        self.fill_tables(queue);
        function.write16(common::QUEUE_SELECT, queue);
        let size = match self.random.below(12) {
            0 => self.any() as u16,
            1 => 0,
            2 => 1,
            3 => 3,
            _ => 1 << self.random.below(9),
        };
        function.write16(common::QUEUE_SIZE, size);
        let part = self.part(queue);
        for (register, offset) in common::QUEUE_ADDRESSES
            .into_iter()
            .zip([0, AVAILABLE, USED])
        {
            let address = match self.random.below(24) {
                0 if self.rings_anywhere => self.nowhere(),
                1 if self.rings_anywhere => self.memory.at(part + offset) + 1,
                // One ring on the other.
                2 => self
                    .memory
                    .at(part + [AVAILABLE, USED][self.random.below(2) as usize]),
                _ => self.memory.at(part + offset),
            };
            // A table of descriptors is one that this driver has filled, or none.
            let is_table = register == common::QUEUE_ADDRESSES[0];
            let address = match is_table && address != self.memory.at(part) {
                true if self.rings_anywhere => self.nowhere(),
                true => self.memory.at(part),
                false => address,
            };
            function.write64(register, address);
        }
        function.write16(common::QUEUE_ENABLE, 1);
    }

    /// Puts new descriptors into both tables of a queue.
    fn fill_tables(&mut self, queue: u16) {
        let part = self.part(queue);
        self.memory.store(part + AVAILABLE, &[0; PART - AVAILABLE]);
        self.fill_table(part, part + INDIRECT_TABLE, true);
        let may_refer = self.random_bool();
        let table = part + INDIRECT_TABLE;
        self.fill_table(table, table, may_refer);
    }

    fn random_bool(&mut self) -> bool {
        self.one_of(2)
    }

    /// Fills a table with requests one after the other, some of them wrong.
    fn fill_table(&mut self, table: usize, indirect: usize, may_refer: bool) {
        let mut index = 0;
        while index < MAX_SIZE {
            let data = DATA + self.random.below((BYTES - DATA - 0x1_0000) as u64) as usize;
            let segments = self.random.below(4) as u16;
            let writes = self.random_bool();
            let mut bytes = 0;
            let mut descriptors = vec![(self.memory.at(data), RequestHeader::SIZE as u32, NEXT)];
            for segment in 0..segments {
                let flags = NEXT | if writes { WRITE } else { 0 };
                let length = self.random.below(0x2000) as u32;
                bytes += u64::from(length);
                let at = data + 0x100 + usize::from(segment) * 0x2000;
                descriptors.push((self.memory.at(at), length, flags));
            }
            let header = self.header(bytes, writes);
            self.memory.store(data, &header);
            let status = self.memory.at(data + 0x40);
            descriptors.push((status, RequestStatus::SIZE as u32, WRITE));
            if may_refer && self.one_of(4) {
                let count = self.random.below(u64::from(MAX_SIZE) + 1) as u32;
                let length = match self.one_of(8) {
                    true => count * DESCRIPTOR as u32 + 1,
                    false => count * DESCRIPTOR as u32,
                };
                descriptors = vec![(self.memory.at(indirect), length, INDIRECT)];
            }
            for (address, length, flags) in descriptors {
                let next = index + 1;
                let descriptor = self.wrong(address, length, flags, next);
                if index < MAX_SIZE {
                    self.memory
                        .store(table + usize::from(index) * DESCRIPTOR, &descriptor);
                }
                index += 1;
            }
        }
    }

    /// A descriptor, one in 32 of them not as it should be.
    fn wrong(&mut self, address: u64, length: u32, flags: u16, next: u16) -> [u8; DESCRIPTOR] {
        let (mut address, mut length, mut flags, mut next) = (address, length, flags, next);
        if self.one_of(32) {
            match self.random.below(8) {
                0 => address = self.nowhere(),
                1 => (address, length) = (self.nowhere(), self.any() as u32),
                2 => length = 0,
                // A loop, an index behind the table.
                3 => next = self.random.below(u64::from(MAX_SIZE)) as u16,
                4 => next = self.any() as u16,
                5 => flags ^= NEXT,
                // Only what is in this memory as a whole.
                6 if flags & INDIRECT == 0 => flags ^= WRITE,
                // Beyond the end of memory, to be read.
                7 if flags & (INDIRECT | WRITE) == 0 => {
                    address = self.memory.end_of_ram - self.random.below(64);
                    length = self.any() as u32;
                }
                _ => {
                    address = self.nowhere();
                    flags = self.any() as u16;
                }
            }
        }
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }

    /// A header, in half of the cases one that fits data of so many bytes, which the device writes
    /// or reads.
    fn header(&mut self, bytes: u64, writes: bool) -> [u8; RequestHeader::SIZE] {
        const OPCODES: [Opcode; 10] = [
            Opcode::Read,
            Opcode::Write,
            Opcode::Flush,
            Opcode::Discard,
            Opcode::WriteZeroes,
            Opcode::Copy,
            Opcode::Fill,
            Opcode::Compare,
            Opcode::Crc32c,
            Opcode::MapAperture,
        ];
        if bytes > 0 && self.random_bool() {
            let opcode = if writes { Opcode::Read } else { Opcode::Write };
            let offset = self.random.below(1 << 20);
            return RequestHeader::command(opcode, offset, bytes, 0).to_bytes();
        }
        let opcode = OPCODES[self.random.below(OPCODES.len() as u64) as usize];
        let number = |driver: &mut Self| match driver.random.below(6) {
            0 => driver.any(),
            1 => u64::MAX - driver.random.below(64),
            2 => 0,
            _ => driver.random.below(0x8000),
        };
        let (offset, length, argument) = (number(self), number(self), number(self));
        let mut bytes = RequestHeader::command(opcode, offset, length, argument).to_bytes();
        if self.one_of(8) {
            bytes[self.random.below(bytes.len() as u64) as usize] = self.any() as u8;
        }
        bytes
    }

    fn act(&mut self) -> Verdict {
        let queue = self.random.below(u64::from(QUEUES)) as u16;
        match self.random.below(24) {
            0..=11 => self.make_available(queue),
            12 => {
                // Doorbells, with nothing in the ring or without a queue.
                for _ in 0..100 {
                    let (place, value) = (self.any() as u16, self.any() as u16);
                    self.ring(place, value);
                }
            }
            13 => {
                // Another index, far ahead or behind.
                self.next_available[usize::from(queue)] = self.any() as u16;
                self.make_available(queue);
            }
            14 => self.fill_tables(queue),
            15 => self.set_up(queue),
            16 => self.random_register(),
            17 => {
                for register in (0..common::BYTES).step_by(4) {
                    self.function.read32(register);
                }
            }
            18 => {
                self.function.set_command(false)?;
                self.make_available(queue);
                self.function.set_command(true)?;
            }
            // In the middle of everything, with and without a start.
            19 => {
                self.reset()?;
                self.start();
            }
            20 => {
                self.function.write8(common::STATUS, 0);
                self.start();
            }
            21 => {
                let status = self.any() as u8;
                self.function.write8(common::STATUS, status);
            }
            _ => {
                self.make_available(FIRST_IO_QUEUE);
                self.make_available(FIRST_IO_QUEUE + 1);
            }
        }
        Ok(())
    }

    /// Writes a register of the common configuration that moves no ring.
    fn random_register(&mut self) {
        let value = self.any() as u32;
        match self.random.below(5) {
            0 => self.function.write32(common::DEVICE_FEATURE_SELECT, value),
            1 => self.function.write32(common::DRIVER_FEATURE, value),
            2 => self.function.write16(common::QUEUE_SELECT, value as u16),
            3 => self.function.write16(common::QUEUE_SIZE, value as u16),
            _ => self.function.write16(common::QUEUE_ENABLE, value as u16),
        }
    }

    /// Makes some entries available, and rings.
    fn make_available(&mut self, queue: u16) {
        let available = self.part(queue) + AVAILABLE;
        let count = self.random.below(9) as u16;
        for _ in 0..count {
            let next = &mut self.next_available[usize::from(queue)];
            let place = usize::from(*next % MAX_SIZE);
            *next = next.wrapping_add(1);
            let head = match self.random.below(32) {
                0 => self.any() as u16,
                // In the middle of a chain, or the first.
                1..=3 => self.random.below(16) as u16,
                _ => 0,
            };
            self.memory
                .store(available + 4 + 2 * place, &head.to_le_bytes());
            self.counts.entries += 1;
        }
        let index = self.next_available[usize::from(queue)];
        self.memory.store(available + 2, &index.to_le_bytes());
        self.function.write16(common::QUEUE_SELECT, queue);
        let place = self.function.read16(common::QUEUE_NOTIFY_OFF);
        self.ring(place, queue);
    }

    fn ring(&mut self, place: u16, value: u16) {
        self.counts.doorbells += 1;
        self.function.ring(place, value);
    }
}
