// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Drivers of one queue, orderly and not.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::{Arbitrary, Unstructured};
use ringbar_engine::{Interrupt, QueueSetup};

use super::area::{Area, BLOCK, INDIRECT_TABLES, SIZE};
use super::devices::{Made, Subject};
use crate::guest::{INDIRECT, NEXT, RawDescriptor, WRITE};

/// What a driver does.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Everything as it should be.
    Orderly,
    /// The available ring: heads and indices.
    Indices,
    /// Chains and requests.
    Descriptors,
    /// Requests as they should be, but the queue is stopped, started and reset in between.
    Timing,
}

/// Descriptors of a request of an orderly driver, and how many it has in flight at most.
const PER_REQUEST: u16 = 2;
const SLOTS: u16 = SIZE / PER_REQUEST;

/// An interrupt of a queue.
struct Line(Arc<AtomicU32>);

impl Interrupt for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The driver of one queue.
pub(super) struct Driver {
    pub(super) kind: Kind,
    pub(super) area: Area,
    event_idx: bool,
    /// As the queue was last started from the beginning.
    pub(super) setup: QueueSetup,
    interrupts: Arc<AtomicU32>,
    /// Interrupts that were seen when the driver last looked into the ring.
    seen: u32,
    /// Requests in flight of an orderly driver, by their slots.
    in_flight: BTreeMap<u16, Made>,
    /// The used index of earlier runs of the queue, and of this one, added up.
    used_before: u64,
    used: u64,
}

impl Driver {
    pub(super) fn new(kind: Kind, area: Area, event_idx: bool) -> Self {
        Self {
            kind,
            area,
            event_idx,
            setup: QueueSetup::default(),
            interrupts: Arc::default(),
            seen: 0,
            in_flight: BTreeMap::new(),
            used_before: 0,
            used: 0,
        }
    }

    pub(super) fn interrupt(&self) -> Box<dyn Interrupt> {
        Box::new(Line(Arc::clone(&self.interrupts)))
    }

    /// Whether all requests of the driver are in order.
    pub(super) fn is_orderly(&self) -> bool {
        matches!(self.kind, Kind::Orderly | Kind::Timing)
    }

    /// The driver starts anew. Returns whether requests were lost.
    pub(super) fn start(&mut self) -> bool {
        self.count_used();
        self.used_before += self.used;
        self.used = 0;
        let lost = !self.in_flight.is_empty();
        self.in_flight.clear();
        self.setup = self.area.start(self.event_idx);
        self.seen = self.interrupts.load(Ordering::Relaxed);
        lost
    }

    /// Number of used entries that the device has written so far.
    pub(super) fn count_used(&mut self) -> u64 {
        let moved = self.area.used().wrapping_sub(self.used as u16);
        self.used += u64::from(moved);
        self.used_before + self.used
    }

    /// Whether all requests have come back.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Makes requests.
    pub(super) fn submit(
        &mut self,
        subject: &mut impl Subject,
        queue: u16,
        input: &mut Unstructured<'_>,
    ) {
        match self.kind {
            Kind::Orderly | Kind::Timing => self.submit_orderly(subject, queue, input),
            Kind::Descriptors => {
                self.put_chains(subject, input);
                let head = input.arbitrary::<u16>().unwrap_or_default() % (SIZE + 1);
                self.area.make_available(head);
            }
            Kind::Indices => {
                let made = Made {
                    input: subject.harm(input),
                    output: 16,
                    answers: Vec::new(),
                };
                self.put_request(0, &made);
                let number = input.arbitrary::<u16>().unwrap_or_default();
                match number % 4 {
                    0 => self.area.set_available(number),
                    1 => self
                        .area
                        .set_available(self.area.available().wrapping_add(SIZE)),
                    2 => self.area.make_available(number),
                    _ => (0..number / 4 % 12).for_each(|_| self.area.make_available(0)),
                }
            }
        }
    }

    fn submit_orderly(
        &mut self,
        subject: &mut impl Subject,
        queue: u16,
        input: &mut Unstructured<'_>,
    ) {
        let free = (0..SLOTS).find(|slot| !self.in_flight.contains_key(slot));
        let Some(slot) = free else { return };
        let Some(made) = subject.make(queue, input) else {
            return;
        };
        self.put_request(slot, &made);
        self.in_flight.insert(slot, made);
        self.area.make_available(slot * PER_REQUEST);
    }

    fn put_request(&self, slot: u16, made: &Made) {
        let table = self.area.base;
        let block = u64::from(slot) * 2;
        self.area.put_block(block, &made.input);
        let (input, output) = (self.area.readable(block), self.area.writable(block));
        self.area.clear(output, made.output);
        let first = slot * PER_REQUEST;
        let readable = RawDescriptor {
            address: input,
            length: made.input.len() as u32,
            flags: NEXT,
            next: first + 1,
        };
        let writable = RawDescriptor {
            address: output,
            length: made.output as u32,
            flags: WRITE,
            next: 0,
        };
        self.area.put_descriptor(table, first, readable);
        self.area.put_descriptor(table, first + 1, writable);
    }

    /// Takes what the device has used, and checks it, if the driver is orderly.
    pub(super) fn reap(&mut self) {
        self.count_used();
        if !self.is_orderly() {
            // It takes them, too.
            self.area.next_used = self.area.used();
            return;
        }
        let mut any = false;
        while let Some((head, length)) = self.area.take_used() {
            any = true;
            let slot = head as u16 / PER_REQUEST;
            let made = self.in_flight.remove(&slot);
            let made = made.unwrap_or_else(|| panic!("head {head} is not in flight"));
            assert_eq!(head, u32::from(slot * PER_REQUEST));
            let written = self
                .area
                .written(self.area.writable(u64::from(slot) * 2), made.output);
            // All of it is written: requests of orderly drivers do not fail.
            assert_eq!(length as usize, made.output);
            assert!(
                made.answers.contains(&written),
                "{written:x?} instead of {:x?}",
                made.answers
            );
        }
        let raised = self.interrupts.load(Ordering::Relaxed);
        assert!(!any || raised != self.seen, "no interrupt");
        self.seen = raised;
        self.area.want_interrupt_from(self.area.next_used);
    }

    /// Puts descriptors into the table of the queue and an indirect one.
    fn put_chains(&self, subject: &mut impl Subject, input: &mut Unstructured<'_>) {
        let block = input.arbitrary::<u64>().unwrap_or_default();
        self.area.put_block(block, &subject.harm(input));
        let count = input.arbitrary::<u16>().unwrap_or_default() % (SIZE + 1);
        let tables = [self.area.base, self.area.indirect_table(block)];
        let table = tables[usize::from(input.arbitrary::<bool>().unwrap_or_default())];
        for index in 0..count {
            if let Ok(wrong) = WrongDescriptor::arbitrary(input) {
                self.area
                    .put_descriptor(table, index, wrong.raw(&self.area, index));
            }
        }
    }
}

/// A descriptor of a driver that means harm. The device reads whole blocks only, so that it finds
/// the beginning of no request in the middle of another.
#[derive(Arbitrary, Debug)]
struct WrongDescriptor {
    place: u64,
    outside: u8,
    length: u32,
    flags: u8,
    other_flags: u16,
    next: u16,
}

impl WrongDescriptor {
    fn raw(&self, area: &Area, index: u16) -> RawDescriptor {
        let flags = match self.flags % 8 {
            0..=1 => NEXT,
            2..=3 => NEXT | WRITE,
            4 => WRITE,
            5 => 0,
            6 => INDIRECT,
            _ => self.other_flags,
        };
        let (is_indirect, is_writable) = (flags & INDIRECT != 0, flags & WRITE != 0);
        let address = match self.outside {
            // Where there is no memory, and beyond the end of the address space.
            0..=7 => self.place | 1 << 40,
            8..=15 => u64::MAX - self.place % 64,
            // Close to the end of this memory.
            16..=23 if is_writable => area.last_writable(),
            _ if is_indirect => area.indirect_table(self.place % INDIRECT_TABLES),
            _ if is_writable => area.writable(self.place),
            _ => area.readable(self.place),
        };
        let length = match self.length % 8 {
            0 => 0,
            1 => self.length,
            2 => 16,
            3 => 1,
            4 => u32::from(SIZE) * 16,
            _ => 32 + self.length % (2 * BLOCK as u32),
        };
        let length = match is_indirect || is_writable || length == 0 {
            true => length,
            // At least a whole header.
            false => length.max(32),
        };
        let next = match self.next % 4 {
            0 => self.next,
            1 => self.next / 4 % SIZE,
            _ => index + 1,
        };
        RawDescriptor {
            address,
            length,
            flags,
            next,
        }
    }
}
