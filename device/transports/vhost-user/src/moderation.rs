// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupt moderation: whether the driver needs the interrupt at once.
//!
//! A driver that submits one request after the other sees on the way what has been
//! used, and needs no interrupt for it, though it has to ask for one in case it
//! stops. So while the device looks for the next request, the interrupt is held
//! back for a while. It goes out when the driver has not gone on by then, which
//! shows in `used_event` (VIRTIO 1.3, 2.7.7.1): a driver that takes used entries
//! moves it. Where the driver did need the interrupt, the following ones are not
//! held back, for a number of times that doubles.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringbar_spec::QueueFault;
use vhost_user_backend::VringState;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::backoff::Backoff;
use crate::counters::Counts;
use crate::ring::{Memory, Ring, signal};

/// An interrupt that is held back.
#[derive(Debug)]
struct Held {
    since: Instant,
    /// `used_event` at that time.
    event: u16,
}

/// Interrupts of one queue.
#[derive(Debug)]
pub(crate) struct Moderation {
    /// How long an interrupt is held back.
    delay: Duration,
    backoff: Backoff,
    held: Option<Held>,
}

impl Moderation {
    /// For a queue whose interrupts may be held back for `delay`.
    pub(crate) fn new(delay: Duration) -> Self {
        Self {
            delay,
            backoff: Backoff::default(),
            held: None,
        }
    }

    /// To be called when the ring has been served: sends the driver the interrupt if it
    /// wants one, or holds it back if that may pay and `may_hold` says that somebody
    /// goes on to [`Self::check`].
    pub(crate) fn served(
        &mut self,
        may_hold: bool,
        ring: &Ring,
        vring: &mut VringState<Memory>,
        mem: &GuestMemoryMmap,
        counts: &mut Counts,
    ) -> Result<(), QueueFault> {
        let wanted = counts.requests > 0 && wants_interrupt(vring, mem)?;
        if self.held.is_some() {
            if may_hold {
                self.check(Instant::now(), ring, vring, mem, counts)?;
                if self.held.is_some() {
                    // Said anew, because the ring may have been stopped since.
                    ring.owe_interrupt();
                }
                return Ok(());
            }
            let event = used_event(vring.get_queue(), mem)?;
            if is_behind(event, vring.get_queue()) {
                self.send(ring, vring, counts);
            } else {
                self.drop_held(ring);
            }
        } else if wanted {
            if may_hold && self.may_pay(vring.get_queue()) {
                self.held = Some(Held {
                    since: Instant::now(),
                    event: used_event(vring.get_queue(), mem)?,
                });
                ring.owe_interrupt();
            } else {
                self.send(ring, vring, counts);
            }
        }
        Ok(())
    }

    fn may_pay(&mut self, queue: &Queue) -> bool {
        // Without the event index nothing tells whether the driver goes on.
        !self.delay.is_zero() && queue.event_idx_enabled() && self.backoff.is_due()
    }

    /// Sends the interrupt that is held back if it is time to.
    pub(crate) fn check(
        &mut self,
        now: Instant,
        ring: &Ring,
        vring: &VringState<Memory>,
        mem: &GuestMemoryMmap,
        counts: &mut Counts,
    ) -> Result<(), QueueFault> {
        let Some(held) = &mut self.held else {
            return Ok(());
        };
        let event = used_event(vring.get_queue(), mem)?;
        if event != held.event {
            self.backoff.learn(true);
            *held = Held { since: now, event };
            if !is_behind(event, vring.get_queue()) {
                self.drop_held(ring);
            }
        } else if now.saturating_duration_since(held.since) >= self.delay {
            self.backoff.learn(false);
            self.send(ring, vring, counts);
        }
        Ok(())
    }

    fn send(&mut self, ring: &Ring, vring: &VringState<Memory>, counts: &mut Counts) {
        self.drop_held(ring);
        counts.interrupts += u64::from(signal(vring));
    }

    fn drop_held(&mut self, ring: &Ring) {
        if self.held.take().is_some() {
            ring.take_owed();
        }
    }

    /// Sends what is held back, because the ring is not served any more.
    pub(crate) fn stop(&mut self, ring: &Ring, vring: &VringState<Memory>) {
        if self.held.take().is_some() && ring.take_owed() {
            signal(vring);
        }
    }
}

/// Whether the driver wants an interrupt for what was used since this was last asked.
pub(crate) fn wants_interrupt(
    vring: &mut VringState<Memory>,
    mem: &GuestMemoryMmap,
) -> Result<bool, QueueFault> {
    vring
        .get_queue_mut()
        .needs_notification(mem)
        .map_err(|_| QueueFault::Ring)
}

/// Whether the driver has asked for an interrupt at an entry that was used already.
fn is_behind(event: u16, queue: &Queue) -> bool {
    // Where it wants none, the event is further away than the ring is long.
    (1..=queue.size()).contains(&queue.next_used().wrapping_sub(event))
}

/// Up to which index the driver has taken what was used (2.7.7.1): behind the
/// available ring.
fn used_event(queue: &Queue, mem: &GuestMemoryMmap) -> Result<u16, QueueFault> {
    const HEADER: u64 = 4;
    const ELEMENT: u64 = 2;
    queue
        .avail_ring()
        .checked_add(HEADER + ELEMENT * u64::from(queue.size()))
        .and_then(|address| mem.load(GuestAddress(address), Ordering::Acquire).ok())
        .map(u16::from_le)
        .ok_or(QueueFault::Ring)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{FromRawFd, IntoRawFd};

    use vhost_user_backend::VringT;
    use vm_memory::GuestMemoryAtomic;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    const SIZE: u16 = 16;
    const AVAIL: u64 = 0x1000;
    const DELAY: Duration = Duration::from_micros(100);

    /// A ring in guest memory, and the two sides of it.
    struct TestQueue {
        moderation: Moderation,
        ring: Ring,
        mem: GuestMemoryMmap,
        call: EventFd,
    }

    impl TestQueue {
        fn new(event_idx: bool) -> Self {
            let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
            let ring = Ring::new(GuestMemoryAtomic::new(mem.clone()), SIZE).unwrap();
            ring.set_queue_size(SIZE);
            ring.set_queue_info(0, AVAIL, 0x2000).unwrap();
            ring.set_queue_event_idx(event_idx);
            ring.set_queue_ready(true);
            ring.set_enabled(true);
            let call = EventFd::new(EFD_NONBLOCK).unwrap();
            let copy = call.try_clone().unwrap().into_raw_fd();
            // SAFETY: the copy was given up just now.
            ring.set_call(Some(unsafe { File::from_raw_fd(copy) }));
            Self {
                moderation: Moderation::new(DELAY),
                ring,
                mem,
                call,
            }
        }

        /// The device has used a request. Returns how many interrupts it sent.
        fn serve(&mut self, may_hold: bool) -> u64 {
            self.ring.add_used(0, 0).unwrap();
            let mut counts = Counts {
                requests: 1,
                ..Counts::default()
            };
            let mut vring = self.ring.get_mut();
            self.moderation
                .served(may_hold, &self.ring, &mut vring, &self.mem, &mut counts)
                .unwrap();
            counts.interrupts
        }

        /// Time goes by. Returns how many interrupts were sent.
        fn after(&mut self, time: Duration) -> u64 {
            let mut counts = Counts::default();
            let vring = self.ring.get_mut();
            let now = Instant::now() + time;
            self.moderation
                .check(now, &self.ring, &vring, &self.mem, &mut counts)
                .unwrap();
            counts.interrupts
        }

        /// The driver writes `used_event`.
        fn ask(&self, event: u16) {
            let address = GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE));
            self.mem
                .store(event.to_le(), address, Ordering::Release)
                .unwrap();
        }

        fn is_called(&self) -> bool {
            self.call.read().is_ok()
        }
    }

    #[test]
    fn comes_late_where_the_driver_does_not_go_on() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.serve(true), 0);
        assert_eq!(queue.serve(true), 0);
        assert!(!queue.is_called());
        assert_eq!(queue.after(2 * DELAY), 1);
        assert!(queue.is_called());
        assert_eq!(queue.after(9 * DELAY), 0);
    }

    #[test]
    fn does_not_come_where_the_driver_has_taken_all() {
        let mut queue = TestQueue::new(true);
        for taken in 1..100 {
            assert_eq!(queue.serve(true), 0);
            queue.ask(taken);
            assert_eq!(queue.after(2 * DELAY), 0);
        }
        assert!(!queue.is_called());
    }

    #[test]
    fn waits_anew_where_the_driver_has_taken_a_part() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.serve(true) + queue.serve(true), 0);
        queue.ask(1);
        assert_eq!(queue.after(2 * DELAY), 0);
        assert_eq!(queue.after(4 * DELAY), 1);
    }

    #[test]
    fn comes_at_once_where_nobody_goes_on_to_look() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.serve(false), 1);
        queue.ask(1);
        assert_eq!(queue.serve(true), 0);
        assert_eq!(queue.serve(false), 1);
        assert_eq!(queue.after(2 * DELAY), 0);
    }

    #[test]
    fn comes_at_once_where_it_was_needed_time_and_again() {
        let mut queue = TestQueue::new(true);
        let mut at_once = 0;
        for taken in 1..=20 {
            at_once += queue.serve(true);
            queue.after(2 * DELAY);
            queue.ask(taken);
        }
        assert!(at_once >= 10, "{at_once} of 20");
    }

    #[test]
    fn comes_at_once_without_the_event_index() {
        let mut queue = TestQueue::new(false);
        assert_eq!(queue.serve(true), 1);
    }

    #[test]
    fn does_not_come_where_the_driver_wants_none() {
        let mut queue = TestQueue::new(true);
        queue.ask(1 << 15);
        assert_eq!(queue.serve(true), 0);
        assert!(queue.moderation.held.is_none());
    }

    #[test]
    fn ho13_comes_before_a_stop_that_follows_another_one() {
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.serve(true), 0);
        // Stopped and started before the worker sees any of it.
        queue.ring.set_queue_ready(false);
        assert!(queue.is_called());
        queue.ring.set_queue_ready(true);
        assert_eq!(queue.serve(true), 0);
        queue.ring.set_queue_ready(false);
        assert!(queue.is_called());
    }

    #[test]
    fn comes_before_the_ring_stops() {
        for stop in [Ring::set_queue_ready, Ring::set_enabled] {
            let mut queue = TestQueue::new(true);
            assert_eq!(queue.serve(true), 0);
            stop(&queue.ring, false);
            assert!(queue.is_called());
            queue.moderation.stop(&queue.ring, &queue.ring.get_ref());
            assert!(!queue.is_called());
        }
        let mut queue = TestQueue::new(true);
        assert_eq!(queue.serve(true), 0);
        queue.moderation.stop(&queue.ring, &queue.ring.get_ref());
        assert!(queue.is_called());
    }
}
