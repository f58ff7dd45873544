// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Entries of the available ring that were taken and are not used yet.

/// An entry of the available ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// How many were taken before it. The ring's own index wraps, and one request can be
    /// overtaken by any number of others.
    number: u64,
    /// Index of the first descriptor of its chain.
    pub(crate) head: u16,
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
}

impl InFlight {
    /// An entry was taken out of the ring.
    pub(crate) const fn take(&mut self, head: u16) -> Entry {
        let number = self.taken;
        self.taken += 1;
        Entry { number, head }
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
            && last.number + 1 == self.taken
        {
            self.interrupted.pop();
            self.taken -= 1;
            count += 1;
        }
        count
    }

    /// A queue starts of which so many taken entries are not used. One that goes on where it
    /// was has as many as were interrupted; any other was reset, and they are gone.
    pub(crate) fn start(&mut self, unused: u16) {
        if usize::from(unused) != self.interrupted.len() {
            self.forget_interrupted();
        }
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
        in_flight.start(1);
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
        in_flight.start(0);
        assert_eq!(in_flight.next_interrupted(), None);
    }
}
