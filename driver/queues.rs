// SPDX-License-Identifier: GPL-2.0

//! The request queues of a device, and their users.
//!
//! | queue | for |
//! |---|---|
//! | control | commands of the driver itself |
//! | I/O, one for each CPU as far as there are so many | requests of the tasks on that CPU |
//! | the last I/O queue, if there are several | polled requests, which have no interrupts |

use crate::{
    layout::{
        CONTROL_QUEUE,
        FIRST_IO_QUEUE, //
    },
    queue::state::Queue, //
};
use core::{
    num::NonZero,
    ops::Range, //
};
use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    prelude::*,
    sync::Arc, //
};

/// Number of entries of an I/O queue, and so of requests in flight. A request takes one entry.
const QUEUE_SIZE: u16 = 256;

/// Number of entries of the control queue, which has at most one command.
const CONTROL_QUEUE_SIZE: u16 = 4;

/// The purpose of a request queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Commands of the driver.
    Control,
    /// Requests of tasks: the I/O queue with this number.
    Io(u16),
    /// Requests for which the caller polls.
    Polled,
}

impl Role {
    /// Number of entries that a queue of this role should have.
    pub(crate) fn size(self) -> u16 {
        match self {
            Self::Control => CONTROL_QUEUE_SIZE,
            Self::Io(_) | Self::Polled => QUEUE_SIZE,
        }
    }
}

/// The queues for requests. There is at least one control queue and one I/O queue.
pub(crate) struct Queues {
    control: Arc<Queue>,
    first: Arc<Queue>,
    /// Further I/O queues.
    others: KVec<Arc<Queue>>,
    /// The I/O queue for polled requests, behind the others.
    polled: Option<Arc<Queue>>,
}

impl Queues {
    /// Creates the queues with `make`, which gets the index in the device and the role. May sleep.
    pub(crate) fn new(
        share: Share,
        make: impl Fn(u16, Role) -> Result<Arc<Queue>>,
    ) -> Result<Self> {
        let (submit, polled) = (share.submit.get(), share.polled);
        let control = make(CONTROL_QUEUE, Role::Control)?;
        let first = make(FIRST_IO_QUEUE, Role::Io(0))?;
        let mut others = KVec::with_capacity(usize::from(submit), GFP_KERNEL)?;
        for n in 1..submit {
            others.push(make(FIRST_IO_QUEUE + n, Role::Io(n))?, GFP_KERNEL)?;
        }
        let polled = polled
            .then(|| make(FIRST_IO_QUEUE + submit, Role::Polled))
            .transpose()?;
        Ok(Self {
            control,
            first,
            others,
            polled,
        })
    }

    /// All queues, in the device's order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Queue> {
        let first = [&self.control, &self.first].into_iter();
        let others = Iterator::chain(first, &self.others);
        Iterator::chain(others, &self.polled).map(|queue| &**queue)
    }

    /// The queue for commands of the driver.
    pub(crate) fn control(&self) -> &Queue {
        &self.control
    }

    /// The queue for polled requests: the last I/O queue, if there are several. Any context.
    pub(crate) fn polled(&self) -> &Queue {
        match &self.polled {
            Some(queue) => queue,
            None => self.here(),
        }
    }

    /// Whether polled requests have a queue of their own.
    pub(crate) fn has_polled(&self) -> bool {
        self.polled.is_some()
    }

    /// The I/O queues for submitters with these numbers. Any context.
    #[inline]
    pub(crate) fn submit_queues(&self, numbers: Range<u16>) -> impl Iterator<Item = &Queue> {
        numbers.filter_map(|n| match usize::from(n).checked_sub(1) {
            None => Some(&*self.first),
            Some(n) => self.others.get(n).map(|queue| &**queue),
        })
    }

    /// The queues that no submitter without polling uses: control queue, and queue for polled
    /// requests. Any context.
    pub(crate) fn other_queues(&self) -> impl Iterator<Item = &Queue> {
        Iterator::chain([&self.control].into_iter(), &self.polled).map(|queue| &**queue)
    }

    /// The I/O queue for a submitter on this CPU. Any context.
    #[inline]
    pub(crate) fn here(&self) -> &Queue {
        self.io(this_cpu())
    }

    /// The I/O queues for submitters, the one for this CPU first. Any context.
    pub(crate) fn all_from_here(&self) -> impl Iterator<Item = &Queue> {
        let here = this_cpu();
        (0..=self.others.len()).map(move |n| self.io(here + n))
    }

    /// The I/O queue that has this index in the device.
    pub(crate) fn by_index(&self, index: u16) -> Option<&Queue> {
        match usize::from(index.checked_sub(FIRST_IO_QUEUE)?).checked_sub(1) {
            None => Some(&self.first),
            Some(n) => match self.others.get(n) {
                Some(queue) => Some(queue),
                None => self
                    .polled
                    .as_deref()
                    .filter(|queue| queue.index() == index),
            },
        }
    }

    /// Number of I/O queues.
    pub(crate) fn io_count(&self) -> usize {
        1 + self.others.len() + usize::from(self.polled.is_some())
    }

    /// I/O queue `n` of those for submitters; `n` wraps around.
    #[inline]
    fn io(&self, n: usize) -> &Queue {
        let n = io_queue_of(n, NonZero::<usize>::MIN.saturating_add(self.others.len()));
        match n.checked_sub(1).and_then(|n| self.others.get(n)) {
            Some(queue) => queue,
            None => &self.first,
        }
    }
}

/// The I/O queue, of `queues`, that submitters on this CPU use. More CPUs than queues share them.
#[inline]
pub(crate) fn io_queue_of(cpu: usize, queues: NonZero<usize>) -> usize {
    cpu % queues
}

/// Number of the CPU that this runs on.
#[inline]
fn this_cpu() -> usize {
    // CAST: A CPU number.
    CpuId::current().as_u32() as usize
}

/// The division of the I/O queues of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Number of queues for submitters: one for each CPU, at least one.
    submit: NonZero<u16>,
    /// Whether the next queue is for polled requests.
    polled: bool,
}

impl Share {
    /// Divides `offered` queues, at least one, among the CPUs of this machine.
    pub(crate) fn of_machine(offered: u16) -> Self {
        Self::new(offered, nr_cpu_ids())
    }

    /// Number of queues for submitters.
    pub(crate) fn submit(&self) -> NonZero<u16> {
        self.submit
    }

    /// Number of queues for submitters and for polled requests.
    pub(crate) fn io_count(&self) -> u16 {
        self.submit.get() + u16::from(self.polled)
    }

    /// Divides `offered` queues, at least one. A single queue serves all requests.
    fn new(offered: u16, cpus: u32) -> Self {
        let polled = offered > 1;
        let rest = offered.saturating_sub(polled.into());
        Self {
            submit: NonZero::new(rest.min(u16::try_from(cpus).unwrap_or(u16::MAX)))
                .unwrap_or(NonZero::<u16>::MIN),
            polled,
        }
    }
}

#[kernel::macros::kunit_tests(ringbar_queues)]
mod tests {
    use super::*;

    #[test]
    fn no_cpu_has_more_than_one_queue() {
        let share = |offered, cpus| {
            let share = Share::new(offered, cpus);
            (share.submit.get(), share.polled)
        };
        assert_eq!(share(1, 8), (1, false));
        assert_eq!(share(2, 8), (1, true));
        assert_eq!(share(4, 8), (3, true));
        assert_eq!(share(9, 8), (8, true));
        assert_eq!(share(64, 8), (8, true));
        assert_eq!(share(64, 1), (1, true));
        assert_eq!(share(64, u32::MAX), (63, true));
    }
}
