// SPDX-License-Identifier: GPL-2.0

//! The plan of interrupt vectors: which vector serves what. Pure.
//!
//! A device has *messages* (MSI-X or MSI), or one *line* (INTx), which it may share with other
//! devices. The plan depends on the number of messages that are available for `n` I/O queues of
//! submitters:
//!
//! | messages | vector 0 | vector 1 | further vectors |
//! |---|---|---|---|
//! | `n + 2` or more | configuration | the other queues | an I/O queue each |
//! | 2 to `n + 1` | configuration, the other queues | I/O queues | I/O queues |
//! | 1, or the line | everything | | |
//!
//! The other queues are control, events and polled requests: their interrupts are rare. I/O queues
//! that share a vector have consecutive numbers.

use crate::{
    queues::io_queue_of,
    virtio::transport::Message, //
};
use core::{
    num::NonZero,
    ops::Range, //
};

/// Number of vectors besides those of I/O queues, if there are enough.
const BESIDES_IO: u16 = 2;

/// Which vector serves what.
///
/// # Invariants
///
/// `vectors` is at least 1 and at most `queues + BESIDES_IO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Number of I/O queues of submitters.
    queues: NonZero<u16>,
    /// Number of vectors in use.
    vectors: u16,
    /// Whether the only vector is the line.
    line: bool,
}

/// What a vector serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Duties {
    /// Configuration changes.
    pub(crate) configuration: bool,
    /// Control queue, event queue, and the queue of polled requests.
    pub(crate) other_queues: bool,
    /// I/O queues of submitters, by number.
    pub(crate) io_queues: Range<u16>,
}

impl Plan {
    /// The plan for a device with `messages` messages, of which it uses at most
    /// [`Self::wanted`]. 0 messages count as 1.
    pub(crate) fn with_messages(queues: NonZero<u16>, messages: u16) -> Self {
        // INVARIANT: Within the bounds.
        Self {
            queues,
            vectors: messages.clamp(1, Self::wanted(queues)),
            line: false,
        }
    }

    /// The plan for a device that has only the line.
    pub(crate) fn with_line(queues: NonZero<u16>) -> Self {
        // INVARIANT: Within the bounds.
        Self {
            queues,
            vectors: 1,
            line: true,
        }
    }

    /// The greatest number of messages that a plan for this number of I/O queues uses.
    pub(crate) fn wanted(queues: NonZero<u16>) -> u16 {
        queues.get().saturating_add(BESIDES_IO)
    }

    /// A plan with half as many vectors; `None` if there is one vector already.
    pub(crate) fn fewer(&self) -> Option<Self> {
        (self.vectors > 1).then(|| Self::with_messages(self.queues, self.vectors / 2))
    }

    /// Number of vectors in use, at least one.
    pub(crate) fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether the only vector is the line.
    pub(crate) fn is_line(&self) -> bool {
        self.line
    }

    /// Whether one vector serves everything.
    pub(crate) fn is_single(&self) -> bool {
        self.vectors == 1
    }

    /// The message for configuration changes.
    pub(crate) fn configuration(&self) -> Message {
        self.message(0)
    }

    /// The message for control queue, event queue, and the queue of polled requests.
    pub(crate) fn other_queues(&self) -> Message {
        self.message(self.first_io().saturating_sub(1))
    }

    /// The message for I/O queue `n` of those of submitters.
    pub(crate) fn io_queue(&self, n: u16) -> Message {
        let vectors = u32::from(self.io_vectors().get());
        let share = u32::from(n) * vectors / NonZero::<u32>::from(self.queues);
        // CAST: Less than the number of vectors, for a queue that exists.
        self.message(self.first_io() + share as u16)
    }

    /// What `vector` serves.
    pub(crate) fn duties(&self, vector: u16) -> Duties {
        let io_queues = match vector.checked_sub(self.first_io()) {
            Some(share) if share < self.io_vectors().get() => {
                self.first_queue(share)..self.first_queue(share + 1)
            }
            _ => 0..0,
        };
        Duties {
            configuration: vector == 0,
            other_queues: vector == self.first_io().saturating_sub(1),
            io_queues,
        }
    }

    /// Whether `vector` serves the queue of `cpu`. `None` if it is to be delivered to any CPU.
    pub(crate) fn serves_cpu(&self, vector: u16, cpu: u32) -> Option<bool> {
        if vector < self.first_io() || self.io_vectors().get() < 2 {
            return None;
        }
        // CAST: A CPU number; and less than the number of queues.
        let queue = io_queue_of(cpu as usize, self.queues.into()) as u16;
        Some(self.duties(vector).io_queues.contains(&queue))
    }

    fn message(&self, vector: u16) -> Message {
        (!self.line).then_some(vector)
    }

    /// The first vector that serves I/O queues.
    fn first_io(&self) -> u16 {
        match self.vectors {
            1 => 0,
            all if all == Self::wanted(self.queues) => BESIDES_IO,
            _ => 1,
        }
    }

    /// Number of vectors that serve I/O queues, at least 1 and at most one for each queue.
    fn io_vectors(&self) -> NonZero<u16> {
        let rest = self.vectors.saturating_sub(self.first_io());
        NonZero::new(rest).unwrap_or(NonZero::<u16>::MIN)
    }

    /// The first I/O queue of vector `share` of those that serve I/O queues, as of
    /// [`Self::io_queue`].
    fn first_queue(&self, share: u16) -> u16 {
        let queues = u32::from(share) * u32::from(self.queues.get());
        let vectors = NonZero::<u32>::from(self.io_vectors());
        // CAST: At most the number of queues.
        ((queues + vectors.get() - 1) / vectors) as u16
    }
}

#[kernel::macros::kunit_tests(ringbar_vectors)]
mod tests {
    use super::*;
    use kernel::prelude::*;

    const FOUR: NonZero<u16> = NonZero::new(4).unwrap();

    fn with_messages(queues: u16, messages: u16) -> Plan {
        Plan::with_messages(NonZero::new(queues).unwrap(), messages)
    }

    /// The I/O queues of each vector.
    fn io(plan: &Plan) -> KVec<Range<u16>> {
        let mut all = KVec::new();
        for vector in 0..plan.vectors() {
            all.push(plan.duties(vector).io_queues, GFP_KERNEL).unwrap();
        }
        all
    }

    #[test]
    fn enough_vectors_serve_one_queue_each() {
        for messages in [6, 7, 2048] {
            let plan = with_messages(4, messages);
            assert_eq!(plan.vectors(), 6);
            assert_eq!(plan.configuration(), Some(0));
            assert_eq!(plan.other_queues(), Some(1));
            assert_eq!(plan.io_queue(3), Some(5));
            assert_eq!(io(&plan)[..], [0..0, 0..0, 0..1, 1..2, 2..3, 3..4]);
            assert!(!plan.duties(0).other_queues && !plan.duties(1).configuration);
        }
    }

    #[test]
    fn first_vector_to_be_shared_is_that_of_the_configuration() {
        let plan = with_messages(4, 5);
        assert_eq!(plan.configuration(), Some(0));
        assert_eq!(plan.other_queues(), Some(0));
        assert_eq!(io(&plan)[..], [0..0, 0..1, 1..2, 2..3, 3..4]);
    }

    #[test]
    fn fewer_vectors_are_shared_by_neighbours() {
        assert_eq!(io(&with_messages(4, 4))[..], [0..0, 0..2, 2..3, 3..4]);
        assert_eq!(io(&with_messages(4, 3))[..], [0..0, 0..2, 2..4]);
        assert_eq!(io(&with_messages(4, 2))[..], [0..0, 0..4]);
    }

    #[test]
    fn one_vector_serves_everything() {
        for (plan, message) in [
            (with_messages(4, 1), Some(0)),
            (with_messages(4, 0), Some(0)),
            (Plan::with_line(FOUR), None),
        ] {
            assert!(plan.is_single());
            assert_eq!(plan.configuration(), message);
            assert_eq!(plan.other_queues(), message);
            assert_eq!(plan.io_queue(3), message);
            let everything = Duties {
                configuration: true,
                other_queues: true,
                io_queues: 0..4,
            };
            assert_eq!(plan.duties(0), everything);
            assert_eq!(plan.serves_cpu(0, 0), None);
            assert_eq!(plan.fewer(), None);
        }
    }

    #[test]
    fn registers_and_handlers_agree() {
        for queues in 1..=64 {
            for messages in 1..=queues + 3 {
                let plan = with_messages(queues, messages);
                assert!(plan.vectors() <= messages);
                for vector in 0..plan.vectors() {
                    let duties = plan.duties(vector);
                    let is = |message| message == Some(vector);
                    assert_eq!(duties.configuration, is(plan.configuration()));
                    assert_eq!(duties.other_queues, is(plan.other_queues()));
                    for n in 0..queues {
                        assert_eq!(duties.io_queues.contains(&n), is(plan.io_queue(n)));
                    }
                }
            }
        }
    }

    #[test]
    fn vectors_halve_until_one_is_left() {
        let mut plan = with_messages(64, u16::MAX);
        let mut steps = 0;
        while let Some(fewer) = plan.fewer() {
            assert!(fewer.vectors() < plan.vectors());
            (plan, steps) = (fewer, steps + 1);
        }
        assert_eq!((plan.vectors(), steps), (1, 6));
    }

    #[test]
    fn each_cpu_has_one_vector() {
        // More CPUs than queues: several CPUs use one queue.
        for messages in 3..=6 {
            let plan = with_messages(4, messages);
            for cpu in 0..9 {
                let queue = (cpu % 4) as u16;
                for vector in 0..plan.vectors() {
                    let serves = plan.duties(vector).io_queues.contains(&queue);
                    let is_io = !plan.duties(vector).io_queues.is_empty();
                    assert_eq!(plan.serves_cpu(vector, cpu), is_io.then_some(serves));
                }
            }
        }
    }
}
