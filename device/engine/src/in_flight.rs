// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Entries of the available ring that were taken and are not used yet.

use crate::fault::Fault;
use crate::record::{QueueRecord, Recorded};
use crate::ring::QueueSetup;

/// An entry of the available ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// How many were taken before it. The ring's own index wraps, and one request can be
    /// overtaken by any number of others.
    number: u64,
    /// Index of the first descriptor of its chain.
    pub(crate) head: u16,
    /// An earlier process had begun to execute its request, which must not be executed twice.
    pub(crate) begun: bool,
}

impl From<Recorded> for Entry {
    fn from(recorded: Recorded) -> Self {
        let Recorded {
            number,
            head,
            begun,
        } = recorded;
        Self {
            number,
            head,
            begun,
        }
    }
}

/// How a queue starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// As the transport says.
    New,
    /// Where another process ended.
    Recovered,
    /// The driver has broken it, perhaps in another process, and has not reset the device.
    Broken(Fault),
}

/// Entries of one queue.
///
/// ```text
///                 ┌────────── complete, if resumed ──┐
///                 ▼                                  │
///  take ─► with the worker ─► defer ─► deferred ─────┴─► complete
///               │                         │
///               └───────── interrupt ─────┴─► interrupted ─► next_interrupted ─► with the worker
///                                                 │
///                                                 └─► give_back ─► the ring
/// ```
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    /// How many entries were taken out of the ring.
    taken: u64,
    /// Those whose requests the device has kept.
    deferred: Vec<Entry>,
    /// Those that were not used when the queue was stopped.
    interrupted: Vec<Entry>,
    /// The same for the next process, if there may be one.
    record: Option<QueueRecord>,
    /// The queue was started in this process.
    was_started: bool,
}

impl InFlight {
    /// Of a queue that has not been started in this process. The entries that are in flight
    /// according to the record were interrupted.
    pub(crate) fn new(record: Option<QueueRecord>) -> Self {
        let mut in_flight = Self {
            record,
            ..Self::default()
        };
        if let Some(record) = &in_flight.record {
            let entries = record.entries();
            in_flight.adopt(entries);
        }
        in_flight
    }

    fn adopt(&mut self, entries: Vec<Recorded>) {
        self.interrupted = entries.into_iter().map(Entry::from).collect();
        // Entries that were taken later may have been used, so none of these can be put back
        // into the ring: the next one does not follow the last of them.
        self.taken = (self.interrupted.last()).map_or(0, |last| last.number.wrapping_add(2));
    }

    /// An entry was taken out of the ring.
    pub(crate) fn take(&mut self, head: u16) -> Entry {
        let number = self.taken;
        self.taken = self.taken.wrapping_add(1);
        if let Some(record) = &self.record {
            record.taken(head, number);
        }
        Entry {
            number,
            head,
            begun: false,
        }
    }

    /// Uses an entry: `push` writes it into the used ring and returns the index of that.
    pub(crate) fn use_entry(
        &self,
        entry: Entry,
        push: impl FnOnce() -> Result<u16, Fault>,
    ) -> Result<(), Fault> {
        let Some(record) = &self.record else {
            return push().map(drop);
        };
        record.using(entry.head);
        let used_idx = push()?;
        record.used(entry.head, used_idx);
        Ok(())
    }

    /// The record, for requests that must not be executed twice.
    pub(crate) const fn record(&self) -> Option<&QueueRecord> {
        self.record.as_ref()
    }

    /// The driver has broken the queue.
    pub(crate) fn set_broken(&self, fault: Fault) {
        if let Some(record) = &self.record {
            record.broken(fault);
        }
    }

    /// The device keeps the request of an entry.
    pub(crate) fn defer(&mut self, entry: Entry) {
        self.deferred.push(entry);
    }

    /// The device has completed or resumed a request that it kept. Returns whether it had kept
    /// it.
    pub(crate) fn complete(&mut self, entry: Entry) -> bool {
        let found = self.deferred.iter().position(|other| *other == entry);
        if let Some(at) = found {
            self.deferred.remove(at);
        }
        found.is_some()
    }

    /// How many requests the device has kept.
    pub(crate) fn deferred(&self) -> usize {
        self.deferred.len()
    }

    /// The queue is stopped, with the requests of `with_worker` half-way.
    pub(crate) fn interrupt(&mut self, with_worker: impl IntoIterator<Item = Entry>) {
        self.interrupted.extend(with_worker);
        self.interrupted.append(&mut self.deferred);
        self.interrupted.sort_by_key(|entry| entry.number);
    }

    /// How many entries can be put back into the ring, because no later one was used: so no
    /// more than necessary are known to this process only. They count as not taken.
    pub(crate) fn give_back(&mut self) -> usize {
        let mut count = 0;
        while let Some(last) = self.interrupted.last()
            && last.number.wrapping_add(1) == self.taken
        {
            if let Some(record) = &self.record {
                record.forget(last.head);
            }
            self.interrupted.pop();
            self.taken = self.taken.wrapping_sub(1);
            count += 1;
        }
        count
    }

    /// A queue starts. Returns whether it goes on where another process ended; `setup` then says
    /// from which index on. Otherwise a queue that goes on where it was has as many entries that
    /// were taken and are not used as were interrupted; any other was reset, and they are gone.
    ///
    /// # Errors
    ///
    /// [`Fault::Ring`] where the driver has changed the ring meanwhile.
    pub(crate) fn start(&mut self, setup: &mut QueueSetup) -> Result<Start, Fault> {
        let first = !std::mem::replace(&mut self.was_started, true);
        if first
            && let Some(record) = &self.record
            && record.is_current()
        {
            let entries = record.recover(setup.size, setup.next_used)?;
            let fault = record.fault();
            // Fits: no more than the ring has.
            setup.next_avail = setup.next_used.wrapping_add(entries.len() as u16);
            self.adopt(entries);
            return Ok(fault.map_or(Start::Recovered, Start::Broken));
        }
        let unused = setup.next_avail.wrapping_sub(setup.next_used);
        if usize::from(unused) != self.interrupted.len() {
            self.forget_interrupted();
        }
        let Some(record) = &self.record else {
            return Ok(Start::New);
        };
        // Only a driver that has reset the device starts here.
        if setup.next_avail == 0 {
            record.mended();
        }
        record.start(setup.size, setup.next_used, |head| {
            self.interrupted.iter().any(|entry| entry.head == head)
        });
        Ok(record.fault().map_or(Start::New, Start::Broken))
    }

    /// Nothing is submitted again.
    pub(crate) fn forget_interrupted(&mut self) {
        self.interrupted.clear();
    }

    /// Whether there are entries to be submitted again.
    pub(crate) fn has_interrupted(&self) -> bool {
        !self.interrupted.is_empty()
    }

    /// The oldest entry that is to be submitted again.
    pub(crate) fn next_interrupted(&mut self) -> Option<Entry> {
        match self.interrupted.is_empty() {
            true => None,
            false => Some(self.interrupted.remove(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The queue starts with so many entries that were taken and are not used.
    fn start(in_flight: &mut InFlight, unused: u16) {
        let mut setup = QueueSetup {
            next_avail: unused,
            ..QueueSetup::default()
        };
        assert_eq!(in_flight.start(&mut setup), Ok(Start::New));
    }

    #[test]
    fn only_the_youngest_go_back_and_the_others_come_again_in_their_order() {
        let mut in_flight = InFlight::default();
        let [first, second, third, fourth, fifth] = [10, 11, 12, 13, 14].map(|h| in_flight.take(h));
        for entry in [fourth, first, second] {
            in_flight.defer(entry);
        }
        // The third was used at once, the second later; the fifth has yielded.
        assert!(in_flight.complete(second));
        assert!(!in_flight.complete(second) && !in_flight.complete(third));
        in_flight.interrupt(Some(fifth));
        assert_eq!(in_flight.give_back(), 2);
        start(&mut in_flight, 1);
        assert_eq!(in_flight.next_interrupted(), Some(first));
        assert_eq!(in_flight.next_interrupted(), None);
        // What went back is taken anew.
        assert_eq!(in_flight.take(13), fourth);
    }

    #[test]
    fn a_reset_forgets() {
        let mut in_flight = InFlight::default();
        let first = in_flight.take(0);
        in_flight.take(1);
        in_flight.defer(first);
        in_flight.interrupt(None);
        assert_eq!(in_flight.give_back(), 0);
        start(&mut in_flight, 0);
        assert_eq!(in_flight.next_interrupted(), None);
    }
}
