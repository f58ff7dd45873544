// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupt moderation: whether the driver needs an interrupt at once.
//!
//! A driver that submits one request after the other takes used entries on the way and
//! needs no interrupt for them, though it has to ask for one in case it stops. So while the
//! worker polls for the next request, it delays the interrupt. The interrupt goes out when
//! the driver has not taken the entries by then, which shows in `used_event` (VIRTIO 1.3,
//! 2.7.7.1): a driver that takes used entries moves it. Where the driver did need the
//! interrupt, the following ones are not delayed, for a number of times that doubles.

use std::time::{Duration, Instant};

use vm_memory::GuestMemory;

use crate::backoff::Backoff;
use crate::fault::Fault;
use crate::interrupt::InterruptSlot;
use crate::ring::Ring;

/// An interrupt that is delayed.
#[derive(Debug)]
struct Delayed {
    since: Instant,
    /// `used_event` at that time.
    event: u16,
}

/// Interrupts of one queue.
#[derive(Debug)]
pub(crate) struct Moderation {
    /// For how long an interrupt is delayed.
    delay: Duration,
    backoff: Backoff,
    delayed: Option<Delayed>,
}

impl Moderation {
    /// For a queue whose interrupts may be delayed for `delay`.
    pub(crate) fn new(delay: Duration) -> Self {
        Self {
            delay,
            backoff: Backoff::default(),
            delayed: None,
        }
    }

    /// Called after a batch, in which entries were used or not. Interrupts the driver if it
    /// wants that, or delays the interrupt if that is worthwhile and `may_delay` says that
    /// [`Self::poll`] will be called. Returns the number of interrupts.
    pub(crate) fn batch_done<M: GuestMemory>(
        &mut self,
        may_delay: bool,
        used: bool,
        ring: &mut Ring,
        mem: &M,
        interrupt: &InterruptSlot,
    ) -> Result<u64, Fault> {
        let wanted = used && ring.wants_interrupt(mem)?;
        if self.delayed.is_some() {
            if may_delay {
                return self.poll(Instant::now(), ring, mem, interrupt);
            }
            let event = ring.used_event(mem)?;
            return Ok(match ring.is_past(event) {
                true => self.flush(interrupt),
                false => {
                    self.delayed = None;
                    0
                }
            });
        }
        if !wanted {
            return Ok(0);
        }
        if may_delay && self.should_delay(ring) {
            self.delayed = Some(Delayed {
                since: Instant::now(),
                event: ring.used_event(mem)?,
            });
            return Ok(0);
        }
        interrupt.raise();
        Ok(1)
    }

    fn should_delay(&mut self, ring: &Ring) -> bool {
        // Without the event index nothing tells whether the driver takes used entries.
        !self.delay.is_zero() && ring.has_event_idx() && self.backoff.should_try()
    }

    /// Sends the delayed interrupt if it is time to. Returns the number of interrupts.
    pub(crate) fn poll<M: GuestMemory>(
        &mut self,
        now: Instant,
        ring: &Ring,
        mem: &M,
        interrupt: &InterruptSlot,
    ) -> Result<u64, Fault> {
        let Some(delayed) = &mut self.delayed else {
            return Ok(0);
        };
        let event = ring.used_event(mem)?;
        if event != delayed.event {
            self.backoff.hit();
            *delayed = Delayed { since: now, event };
            if !ring.is_past(event) {
                self.delayed = None;
            }
        } else if now.saturating_duration_since(delayed.since) >= self.delay {
            self.backoff.miss();
            return Ok(self.flush(interrupt));
        }
        Ok(0)
    }

    /// Sends the delayed interrupt, because nobody will call [`Self::poll`]. Returns the
    /// number of interrupts.
    pub(crate) fn flush(&mut self, interrupt: &InterruptSlot) -> u64 {
        match self.delayed.take() {
            Some(_) => {
                interrupt.raise();
                1
            }
            None => 0,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::interrupt::Count;
    use crate::ring::QueueSetup;

    const SIZE: u16 = 16;
    const AVAIL: u64 = 0x1000;
    const DELAY: Duration = Duration::from_micros(100);

    /// A ring in guest memory, and the two sides of it.
    struct TestQueue {
        moderation: Moderation,
        ring: Ring,
        mem: GuestMemoryMmap,
        interrupt: InterruptSlot,
        raised: Arc<AtomicU32>,
    }

    impl TestQueue {
        fn new(event_idx: bool) -> Self {
            let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
            let mut ring = Ring::new();
            ring.set_up(&QueueSetup {
                size: SIZE,
                avail_ring: AVAIL,
                used_ring: 0x2000,
                event_idx,
                ..QueueSetup::default()
            });
            let (interrupt, raised) = (InterruptSlot::default(), Arc::<AtomicU32>::default());
            interrupt.set(Some(Box::new(Count(Arc::clone(&raised)))));
            Self {
                moderation: Moderation::new(DELAY),
                ring,
                mem,
                interrupt,
                raised,
            }
        }

        /// The device has used a request. Returns how many interrupts it sent.
        fn process(&mut self, may_delay: bool) -> u64 {
            self.ring.push_used(&self.mem, 0, 0).unwrap();
            self.moderation
                .batch_done(may_delay, true, &mut self.ring, &self.mem, &self.interrupt)
                .unwrap()
        }

        /// Time goes by. Returns how many interrupts were sent.
        fn after(&mut self, time: Duration) -> u64 {
            let now = Instant::now() + time;
            self.moderation
                .poll(now, &self.ring, &self.mem, &self.interrupt)
                .unwrap()
        }

        /// The driver writes `used_event`.
        fn ask(&self, event: u16) {
            let address = GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE));
            self.mem
                .store(event.to_le(), address, Ordering::Release)
                .unwrap();
        }

        fn raised(&self) -> u32 {
            self.raised.swap(0, Ordering::Relaxed)
        }
    }

    #[test]
    fn comes_late_where_the_driver_takes_nothing() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.process(true), 0);
        assert_eq!(queue.process(true), 0);
        assert_eq!(queue.raised(), 0);
        assert_eq!(queue.after(2 * DELAY), 1);
        assert_eq!(queue.raised(), 1);
        assert_eq!(queue.after(9 * DELAY), 0);
    }

    #[test]
    fn does_not_come_where_the_driver_has_taken_all() {
        let mut queue = TestQueue::new(true);
        for taken in 1..100 {
            assert_eq!(queue.process(true), 0);
            queue.ask(taken);
            assert_eq!(queue.after(2 * DELAY), 0);
        }
        assert_eq!(queue.raised(), 0);
    }

    #[test]
    fn waits_anew_where_the_driver_has_taken_a_part() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.process(true) + queue.process(true), 0);
        queue.ask(1);
        assert_eq!(queue.after(2 * DELAY), 0);
        assert_eq!(queue.after(4 * DELAY), 1);
    }

    #[test]
    fn comes_at_once_where_nobody_polls() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.process(false), 1);
        queue.ask(1);
        assert_eq!(queue.process(true), 0);
        assert_eq!(queue.process(false), 1);
        assert_eq!(queue.after(2 * DELAY), 0);
    }

    #[test]
    fn comes_at_once_where_it_was_needed_time_and_again() {
        let mut queue = TestQueue::new(true);
        let mut at_once = 0;
        for taken in 1..=20 {
            at_once += queue.process(true);
            queue.after(2 * DELAY);
            queue.ask(taken);
        }
        assert!(at_once >= 10, "{at_once} of 20");
    }

    #[test]
    fn comes_at_once_without_the_event_index() {
        assert_eq!(TestQueue::new(false).process(true), 1);
    }

    #[test]
    fn does_not_come_where_the_driver_wants_none() {
        let mut queue = TestQueue::new(true);
        queue.ask(1 << 15);
        assert_eq!(queue.process(true), 0);
        assert!(queue.moderation.delayed.is_none());
    }

    #[test]
    fn ho13_comes_when_the_queue_stops() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.process(true), 0);
        assert_eq!(queue.moderation.flush(&queue.interrupt), 1);
        assert_eq!(queue.moderation.flush(&queue.interrupt), 0);
        assert_eq!(queue.raised(), 1);
    }
}
