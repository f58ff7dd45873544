// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lies about used entries.

use std::io;

use ringbar_agent_protocol::host::UsedLie;
use ringbar_spec::RequestStatus;

use crate::memory::Memory;
use crate::message::invalid;
use crate::queue::{Queue, Used};

/// Size of a descriptor (VIRTIO 1.3, 2.7.5), and its flag for an indirect table.
const DESCRIPTOR: u64 = 16;
const INDIRECT: u16 = 4;

/// Offsets in the status of a request.
const CODE: u64 = 0;
const RESULT: u64 = 8;

/// Tells the guest a lie about `used`.
pub(crate) fn inject(
    lie: UsedLie,
    queue: &mut Queue,
    memory: &Memory,
    used: Used,
) -> io::Result<()> {
    let Used { id, len } = used;
    let kills = matches!(
        lie,
        UsedLie::IndexAhead(_) | UsedLie::Id(_) | UsedLie::Twice | UsedLie::NotInFlight
    );
    match lie {
        UsedLie::IndexAhead(ahead) => queue.put_used(memory, used, ahead)?,
        UsedLie::Id(id) => queue.put_used(memory, Used { id, len }, 0)?,
        UsedLie::Twice => {
            queue.put_used(memory, used, 0)?;
            queue.put_used(memory, used, 0)?;
        }
        UsedLie::NotInFlight => {
            let id = queue
                .unavailable_entry(id)
                .ok_or_else(|| invalid("the whole ring is in flight"))?;
            queue.put_used(memory, Used { id, len }, 0)?;
        }
        UsedLie::Length(len) => queue.put_used(memory, Used { id, len }, 0)?,
        UsedLie::StatusUnwritten => {
            let status = status(queue, memory, id)?;
            for (i, byte) in (0..).zip(RequestStatus::UNWRITTEN) {
                memory.write(status + i, byte)?;
            }
            queue.put_used(memory, used, 0)?;
        }
        UsedLie::Status { code, result } => {
            let status = status(queue, memory, id)?;
            memory.write(status + CODE, code.to_le())?;
            memory.write(status + RESULT, result.to_le())?;
            queue.put_used(memory, used, 0)?;
        }
        UsedLie::Never => {}
    }
    if kills && let Some(rings) = &mut queue.rings {
        rings.broken = true;
    }
    Ok(())
}

/// Address of the status of the request at entry `id`: the last descriptor of the
/// driver's indirect table.
fn status(queue: &Queue, memory: &Memory, id: u32) -> io::Result<u64> {
    let not_ours = || invalid("a request that is not as the driver makes them");
    let rings = queue.rings.as_ref().ok_or_else(not_ours)?;
    let (table, length, flags) =
        descriptor(memory, rings.descriptors + DESCRIPTOR * u64::from(id))?;
    if flags & INDIRECT == 0 || u64::from(length) < DESCRIPTOR {
        return Err(not_ours());
    }
    let last = table + u64::from(length) - DESCRIPTOR;
    match descriptor(memory, last)? {
        (address, length, _) if length as usize == RequestStatus::SIZE => Ok(address),
        _ => Err(not_ours()),
    }
}

/// Address, length and flags.
pub(crate) fn descriptor(memory: &Memory, at: u64) -> io::Result<(u64, u32, u16)> {
    Ok((
        memory.read(at)?,
        memory.read(at + 8)?,
        memory.read(at + 12)?,
    ))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::memory::{shadow_avail, shadow_used};
    use crate::message::Message;

    const SIZE: u16 = 4;
    const BYTES: u64 = 0x10000;
    /// User address of the guest's memory in the monitor.
    const USER: u64 = 0x7000_0000_0000;
    const DESCRIPTORS: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const TABLES: u64 = 0x4000;
    const STATUSES: u64 = 0x5000;

    /// A guest with one I/O queue, and the proxy's side of it.
    struct Fixture {
        guest: GuestMemoryMmap,
        memory: Memory,
        queue: Queue,
        available: u16,
        used: u16,
    }

    impl Fixture {
        fn new() -> Self {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, BYTES).unwrap();
            let map = FileOffset::new(File::from(file.try_clone().unwrap()), 0);
            let range = (GuestAddress(0), BYTES as usize, Some(map));
            let guest = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
            let mut body = [1u32, 0].map(u32::to_ne_bytes).concat();
            body.extend([0, BYTES, USER, 0].map(u64::to_ne_bytes).concat());
            let mut table = Message {
                request: crate::message::request::SET_MEM_TABLE,
                flags: 1,
                body,
                files: vec![file],
            };
            let mut memory = Memory::new().unwrap();
            memory.update(&mut table).unwrap();
            assert_eq!(table.word(0).unwrap(), 2);
            assert_eq!(table.files.len(), 2);
            assert_eq!(memory.to_guest(USER + AVAIL).unwrap(), AVAIL);
            assert!(memory.to_guest(USER + BYTES).is_err());

            let mut queue = Queue::new(2).unwrap();
            queue.set_event_idx(true);
            queue.set_size(SIZE.into()).unwrap();
            queue.set_base(0);
            queue.start(&memory, DESCRIPTORS, AVAIL, USED).unwrap();
            Self {
                guest,
                memory,
                queue,
                available: 0,
                used: 0,
            }
        }

        /// The driver makes a request at `entry`, and the device uses it.
        fn request(&mut self, entry: u16) -> Used {
            let (table, status) = (
                TABLES + 0x100 * u64::from(entry),
                STATUSES + 0x10 * u64::from(entry),
            );
            let put = |at: u64, address: u64, len: u32, flags: u16| {
                self.guest.write_obj(address, GuestAddress(at)).unwrap();
                self.guest.write_obj(len, GuestAddress(at + 8)).unwrap();
                self.guest.write_obj(flags, GuestAddress(at + 12)).unwrap();
            };
            put(DESCRIPTORS + 16 * u64::from(entry), table, 32, INDIRECT);
            put(table, 0x9000, 32, 1);
            put(table + 16, status, 16, 2);
            let place = AVAIL + 4 + 2 * u64::from(self.available % SIZE);
            self.guest.write_obj(entry, GuestAddress(place)).unwrap();
            self.available += 1;
            let index = GuestAddress(AVAIL + 2);
            self.guest.write_obj(self.available, index).unwrap();
            self.queue.forward_available(&self.memory).unwrap();

            let (shadow, _) = shadow_avail(2);
            let place = shadow + 4 + 2 * u64::from(self.used % SIZE);
            assert_eq!(self.memory.read::<u16>(place).unwrap(), entry);
            let (shadow, _) = shadow_used(2);
            let place = shadow + 4 + 8 * u64::from(self.used % SIZE);
            self.memory.write(place, u32::from(entry)).unwrap();
            self.memory.write(place + 4, 16u32).unwrap();
            self.memory.write(status, [0u8; 16]).unwrap();
            self.used += 1;
            self.memory.store(shadow + 2, self.used).unwrap();
            let used = self.queue.take_used(&self.memory).unwrap();
            assert_eq!(used.len(), 1);
            used[0]
        }

        fn inject(&mut self, lie: UsedLie, used: Used) {
            inject(lie, &mut self.queue, &self.memory, used).unwrap();
        }

        /// The used index and an element, as the guest sees them.
        fn seen(&self, element: u16) -> (u16, u32, u32) {
            let at = USED + 4 + 8 * u64::from(element % SIZE);
            let read = |at: u64| self.guest.read_obj::<u32>(GuestAddress(at)).unwrap();
            let index = self.guest.read_obj(GuestAddress(USED + 2)).unwrap();
            (index, read(at), read(at + 4))
        }

        fn is_broken(&self) -> bool {
            self.queue.rings.as_ref().unwrap().broken
        }
    }

    #[test]
    fn honest_entries_go_through_around_the_ring() {
        let mut fixture = Fixture::new();
        for round in 0..3 * SIZE {
            let used = fixture.request(round % 3);
            assert_eq!(
                used,
                Used {
                    id: (round % 3).into(),
                    len: 16
                }
            );
            fixture.queue.put_used(&fixture.memory, used, 0).unwrap();
            assert_eq!(fixture.seen(round), (round + 1, used.id, 16));
        }
    }

    #[test]
    fn lies_about_rings_are_what_they_say_and_the_last_word() {
        for (lie, seen) in [
            (UsedLie::IndexAhead(7), (8, 3, 16)),
            (UsedLie::IndexAhead(u16::MAX - 1), (u16::MAX, 3, 16)),
            (UsedLie::Id(70_000), (1, 70_000, 16)),
            (UsedLie::NotInFlight, (1, 0, 16)),
        ] {
            let mut fixture = Fixture::new();
            let used = fixture.request(3);
            fixture.inject(lie, used);
            assert_eq!(fixture.seen(0), seen, "{lie:?}");
            assert!(fixture.is_broken(), "{lie:?}");
        }
        let mut fixture = Fixture::new();
        let used = fixture.request(1);
        fixture.inject(UsedLie::Twice, used);
        assert_eq!((fixture.seen(0), fixture.seen(1)), ((2, 1, 16), (2, 1, 16)));
        assert!(fixture.is_broken());
    }

    #[test]
    fn lies_about_statuses_leave_the_queue_alive() {
        let status = |fixture: &Fixture| {
            let at = GuestAddress(STATUSES + 0x20);
            fixture.guest.read_obj::<[u8; 16]>(at).unwrap()
        };
        let mut fixture = Fixture::new();
        let used = fixture.request(2);
        fixture.inject(UsedLie::StatusUnwritten, used);
        assert_eq!(status(&fixture), RequestStatus::UNWRITTEN);
        assert_eq!(fixture.seen(0), (1, 2, 16));

        let used = fixture.request(2);
        let (code, result) = (77, u64::MAX - 1);
        fixture.inject(UsedLie::Status { code, result }, used);
        assert_eq!(status(&fixture)[..4], code.to_le_bytes());
        assert_eq!(status(&fixture)[8..], result.to_le_bytes());

        let used = fixture.request(2);
        fixture.inject(UsedLie::Length(9), used);
        assert_eq!(fixture.seen(2), (3, 2, 9));
        let used = fixture.request(2);
        fixture.inject(UsedLie::Never, used);
        assert_eq!(fixture.seen(3).0, 3);
        assert!(!fixture.is_broken());
    }
}
