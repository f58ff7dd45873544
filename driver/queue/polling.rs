// SPDX-License-Identifier: GPL-2.0

//! Whether it should_poll to look for the end of a request right after the notification,
//! instead of sleeping until the interrupt comes.
//!
//! An interrupt costs more than most requests take: raising it, leaving the
//! idle state, waking the task. So whoever has notified the device looks at the
//! used ring for a while, with the interrupts of the queue off: for longer where the
//! request is larger. That is lost time where the request takes longer still, because
//! the device is busy or stopped. So the largest are not looked for, and a queue that
//! was looked at in vain is left alone for a number of notifications that doubles each
//! time.
//!
//! A submitter with many requests in flight need not even look: while it goes ahead
//! and submits the next, the device does the one before, which is ended on the way.
//! How many it wants in flight nobody says, so it is tried: it should_poll as long as the next
//! submission comes before the interrupt, which the device holds back a little.

use super::{
    caller::Caller,
    completion::{
        Budget,
        Reaped, //
    },
    request::Request,
    slot::{
        Completion,
        Slot, //
    },
    state::{
        Entry,
        Queue,
        State, //
    }, //
};
use crate::{
    abstractions::task::spin::{
        self,
        NoPreemption, //
    },
    virtio::{
        ring::used_index,
        transport::Transport, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        }, //
        SpinLockIrqGuard,
    },
    time::Delta, //
};

/// How far a request got while its submitter looked for its end.
pub(crate) enum Polled<C: Caller> {
    /// It has ended, and the caller never became its owner.
    Completed(KBox<Slot>, C),
    /// It has not, and the caller is its owner.
    Queued(C::IoReturn),
}

/// Leaving out what did not pay, for longer each time in a row. Updated without a
/// lock: a lost update is a wrong guess at worst.
struct Backoff {
    /// Times to come that are left out.
    skip: Atomic<u32>,
    /// How often in a row it was in vain, up to `forgiven + max`.
    failures: Atomic<u32>,
    /// How often in a row nothing follows from that.
    forgiven: u32,
    /// The binary logarithm of the most times that are left out.
    max: u32,
}

impl Backoff {
    fn new(forgiven: u32, max: u32) -> Self {
        Self {
            skip: Atomic::new(0),
            failures: Atomic::new(0),
            forgiven,
            max,
        }
    }

    /// Whether it was in vain the last time.
    fn has_failed(&self) -> bool {
        self.failures.load(Relaxed) != 0
    }

    /// Whether to do it this time. Asked once for each.
    fn should_poll(&self) -> bool {
        let skip = self.skip.load(Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Relaxed);
        }
        skip == 0
    }

    /// What came of it.
    fn learn(&self, paid: bool) {
        if paid {
            // Mostly so already; then the cache line stays shared.
            if self.has_failed() {
                self.failures.store(0, Relaxed);
            }
            return;
        }
        let failures = (self.failures.load(Relaxed) + 1).min(self.forgiven + self.max);
        self.failures.store(failures, Relaxed);
        if let Some(exponent) = failures.checked_sub(self.forgiven + 1) {
            self.skip.store(2 << exponent, Relaxed);
        }
    }
}

/// Most bytes whose end is looked for together. An interrupt costs little beside what
/// more of them take.
const MAX_POLLED_BYTES: usize = 1 << 20;

/// For so many bytes the end is looked for as long again as for a request without any.
const BYTES_FOR_LIMIT: usize = 128 << 10;

/// The binary logarithm of the most notifications for which it is left out to look.
const MAX_LOOK_FAILURES: u32 = 6;

/// So often in a row it may be in vain to look: mostly somebody was held up for a
/// moment, and the interrupts instead would cost more than the time.
const FORGIVEN_LOOKS: u32 = 2;

/// The same for going ahead, which costs a submitter that has to wait an interrupt.
const MAX_AHEAD_FAILURES: u32 = 10;

/// What a queue has seen of late.
pub(super) struct Polling {
    look: Backoff,
    ahead: Backoff,
    /// Whether the last submitter went ahead.
    is_ahead: Atomic<bool>,
    /// Whether an interrupt has ended requests since.
    interrupted: Atomic<bool>,
}

impl Polling {
    /// For a queue that nothing is known of.
    pub(super) fn new() -> Self {
        Self {
            look: Backoff::new(FORGIVEN_LOOKS, MAX_LOOK_FAILURES),
            ahead: Backoff::new(0, MAX_AHEAD_FAILURES),
            is_ahead: Atomic::new(false),
            interrupted: Atomic::new(false),
        }
    }

    /// Whether a submitter that need not wait is to go ahead after this notification:
    /// as long as the next one comes before the interrupt. `earlier` tells whether
    /// earlier requests are still to be ended. Asked once for each notification.
    fn goes_ahead(&self, earlier: impl FnOnce() -> bool) -> bool {
        let interrupted = self.interrupted.load(Relaxed);
        if interrupted {
            self.interrupted.store(false, Relaxed);
        }
        let goes = if !self.is_ahead.load(Relaxed) {
            self.ahead.should_poll()
        } else if interrupted {
            self.ahead.learn(false);
            false
        } else {
            // Otherwise the last one had ended at once, which says nothing.
            if self.ahead.has_failed() && earlier() {
                self.ahead.learn(true);
            }
            true
        };
        self.is_ahead.store(goes, Relaxed);
        goes
    }
}

/// What should_poll after requests were submitted, as far as they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitStrategy {
    /// Notify the device: nobody gains by the end of the requests at once.
    Interrupt,
    /// Notify it, and look for the end of the requests, which move so many bytes
    /// together, if they are not too many.
    BusyPoll(usize),
}

impl WaitStrategy {
    /// How long to look, where `limit` is for a request without data; `None` for not at
    /// all.
    fn look_limit(self, limit: Delta) -> Option<Delta> {
        match self {
            // CAST: A small number.
            Self::BusyPoll(bytes) if bytes <= MAX_POLLED_BYTES => {
                Some(limit * (1 + bytes / BYTES_FOR_LIMIT) as i64)
            }
            _ => None,
        }
    }
}

impl Queue {
    /// How long to look for the end of what is submitted now, where `limit` is for
    /// requests without data; `None` where that does not pay. `waits` says that the
    /// submitter cannot go on before. To be asked once for each notification.
    pub(crate) fn poll_limit(
        &self,
        effort: WaitStrategy,
        waits: bool,
        limit: Option<Delta>,
    ) -> Option<Delta> {
        effort
            .look_limit(limit?)
            .filter(|_| (waits || !self.goes_ahead()) && self.polling.look.should_poll())
    }

    fn goes_ahead(&self) -> bool {
        let earlier = || self.state.lock().ring.is_awaited();
        self.polling.goes_ahead(earlier)
    }

    /// As [`Self::reap`], because of an interrupt: only as much as `budget` allows. What is
    /// left is in [`Reaped::more`]; no interrupt comes for it.
    pub(crate) fn reap_after_interrupt(
        &self,
        device: &pci::Device<Bound>,
        budget: &mut Budget,
    ) -> Reaped {
        let state = self.state.lock();
        // Before anything is ended: whoever is told may submit at once. Somebody who is
        // preparing or ending a request does not wait for the interrupt.
        if state.ring.has_used() && !state.has_slots_in_hand() {
            self.polling.interrupted.store(true, Relaxed);
        }
        drop(state);
        self.reap_within(device, budget)
    }

    /// Notifies the device of what was submitted, if it wants to know, and ends what it
    /// has used in the meantime. Any context, no lock held.
    pub(crate) fn notify_and_reap(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
    ) -> Reaped {
        let state = self.state.lock();
        self.go_ahead(state, transport, device)
    }

    /// [`Self::submit_one`], then [`Self::notify_and_reap`]. Any context, no lock held.
    pub(crate) fn submit_and_reap<C: Caller>(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        request: Request<'_>,
        caller: C,
    ) -> Result<(Reaped, C::IoReturn), (Error, C)> {
        let mut state = self.state.lock();
        match self.submit_locked(&mut state, request, caller) {
            Ok(answer) => Ok((self.go_ahead(state, transport, device), answer)),
            Err((error, request, caller)) => {
                // Not under the lock: the request goes back to it.
                drop(state);
                drop(request);
                Err((error, caller))
            }
        }
    }

    #[inline(always)]
    fn go_ahead(
        &self,
        mut state: SpinLockIrqGuard<'_, State>,
        transport: &Transport,
        device: &pci::Device<Bound>,
    ) -> Reaped {
        let wanted = state.ring.wants_notification();
        let used = !self.polled && state.ring.has_used();
        drop(state);
        if wanted {
            self.ring_doorbell(transport, device);
        }
        if used {
            self.reap(device)
        } else {
            Reaped::default()
        }
    }

    /// Notifies the device of what was submitted, if it wants to know, and ends
    /// requests as [`Self::reap`] does until those that are in flight now have ended,
    /// at most for `limit`. Task context; does not sleep.
    pub(crate) fn notify_and_poll(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        limit: Delta,
    ) -> Reaped {
        let guard = NoPreemption::new();
        let mut state = self.state.lock();
        let wanted = state.begin_polling();
        let target = state.ring.pushed();
        drop(state);
        if wanted {
            self.ring_doorbell(transport, device);
        }
        let mut seen = self.poll_until(device, limit, target, &guard);
        let more = self.state.lock().end_polling() | seen.take_more();
        drop(guard);
        if more {
            seen.add(self.reap(device));
        }
        seen
    }

    /// Gives a request to the device, and looks for its end as
    /// [`Self::notify_and_poll`] does. Returns what was seen, and how far the request
    /// got: only if its end is still to come, `caller` becomes its owner. Task context;
    /// does not sleep.
    ///
    /// On an error nothing was submitted, and the request was given up.
    pub(crate) fn submit_and_poll<C: Caller>(
        &self,
        transport: &Transport,
        device: &pci::Device<Bound>,
        mut request: Request<'_>,
        limit: Delta,
        caller: C,
    ) -> Result<(Reaped, Polled<C>), (Error, C)> {
        request.set_owner(Completion::Submitter);
        let (entry, segments) = (request.slot().entry(), request.slot().segments());

        let guard = NoPreemption::new();
        let mut state = self.state.lock();
        if let Some(error) = state.failed {
            // Not under the lock: the request goes back to it.
            drop(state);
            return Err((error, caller));
        }
        state.put_in_flight(request.into_inner());
        state.ring.publish();
        let wanted = state.begin_polling();
        let target = state.ring.pushed();
        drop(state);
        self.count(1, segments as u64);
        if wanted {
            self.ring_doorbell(transport, device);
        }
        let mut seen = self.poll_until(device, limit, target, &guard);

        let mut state = self.state.lock();
        if state.end_polling() | seen.take_more() {
            drop(state);
            drop(guard);
            seen.add(self.reap(device));
            state = self.state.lock();
        }
        match state.take_done(entry) {
            Some(Ok(slot)) => return Ok((seen, Polled::Completed(slot, caller))),
            Some(Err(error)) => return Err((error, caller)),
            None => {}
        }
        let (owner, answer) = caller.queue();
        // What is not done is in flight.
        if let Entry::InFlight(slot) = &mut state.entries[entry] {
            slot.owner = owner;
        }
        Ok((seen, Polled::Queued(answer)))
    }

    /// Ends requests until as many were used as had been pushed up to `target`, or there
    /// are more than may be ended by somebody who is not preempted.
    fn poll_until(
        &self,
        device: &pci::Device<Bound>,
        limit: Delta,
        target: u16,
        guard: &NoPreemption,
    ) -> Reaped {
        let mut seen = Reaped::default();
        let mut last = None;
        let found = spin::poll(guard, limit, || {
            // Without the lock, so that those who have something to do get it.
            let index = used_index(self.used_ring());
            if last == Some(index) {
                return false;
            }
            last = Some(index);
            seen.add(self.reap_within(device, &mut Budget::for_interrupt()));
            seen.fault.is_some() || seen.more || seen.has_taken(target)
        });
        self.polling.look.learn(found);
        seen
    }
}

impl State {
    /// Asks for no interrupts while somebody looks for what was pushed. Returns
    /// whether the device wants to be notified of that. Until [`Self::end_polling`] all
    /// others on the queue wait for that somebody, who must not be preempted.
    fn begin_polling(&mut self) -> bool {
        self.busy_pollers += 1;
        self.ring.disable_interrupts();
        self.ring.wants_notification()
    }

    /// Asks for interrupts if nobody else looks. Returns whether something was used
    /// meanwhile: no interrupt may come for it, and the caller has to reap.
    fn end_polling(&mut self) -> bool {
        self.busy_pollers -= 1;
        self.busy_pollers == 0 && self.ring.enable_interrupts()
    }
}

#[kernel::macros::kunit_tests(ringbar_polling)]
mod tests {
    use super::*;

    /// How many times are left out until the next.
    fn skipped(backoff: &Backoff) -> u32 {
        let mut count = 0;
        while !backoff.should_poll() {
            count += 1;
        }
        count
    }

    #[test]
    fn larger_requests_are_looked_for_longer() {
        let limit = Delta::from_micros(100);
        let micros = |effort: WaitStrategy| effort.look_limit(limit).map(Delta::as_micros_ceil);
        assert_eq!(micros(WaitStrategy::Interrupt), None);
        assert_eq!(micros(WaitStrategy::BusyPoll(0)), Some(100));
        assert_eq!(micros(WaitStrategy::BusyPoll(64 << 10)), Some(100));
        assert_eq!(micros(WaitStrategy::BusyPoll(128 << 10)), Some(200));
        assert_eq!(micros(WaitStrategy::BusyPoll(1 << 20)), Some(900));
        assert_eq!(micros(WaitStrategy::BusyPoll((1 << 20) + 1)), None);
        assert_eq!(micros(WaitStrategy::BusyPoll(usize::MAX)), None);
    }

    #[test]
    fn success_keeps_it_going() {
        let backoff = Backoff::new(0, 6);
        for _ in 0..10 {
            assert_eq!(skipped(&backoff), 0);
            backoff.learn(true);
        }
    }

    #[test]
    fn failure_doubles_the_pause_up_to_a_limit() {
        let backoff = Backoff::new(0, 6);
        for pause in [0, 2, 4, 8, 16, 32, 64, 64, 64] {
            assert_eq!(skipped(&backoff), pause);
            backoff.learn(false);
        }
        assert_eq!(skipped(&backoff), 64);
        backoff.learn(true);
        assert_eq!(skipped(&backoff), 0);
        backoff.learn(false);
        assert_eq!(skipped(&backoff), 2);
    }

    #[test]
    fn what_is_forgiven_has_no_pause() {
        let backoff = Backoff::new(2, 2);
        for pause in [0, 0, 0, 2, 4, 4] {
            assert_eq!(skipped(&backoff), pause);
            backoff.learn(false);
        }
    }

    /// Has the last one ended by an interrupt, and checks that nobody goes ahead the
    /// next `pause` times.
    fn interrupt(polling: &Polling, pause: u32) {
        polling.interrupted.store(true, Relaxed);
        for _ in 0..=pause {
            assert!(!polling.goes_ahead(|| true));
        }
        assert!(polling.goes_ahead(|| true));
    }

    #[test]
    fn goes_ahead_until_an_interrupt_comes_first() {
        let polling = Polling::new();
        for _ in 0..10 {
            assert!(polling.goes_ahead(|| true));
        }
        for pause in [2, 4, 8] {
            interrupt(&polling, pause);
        }
        assert!(polling.goes_ahead(|| true));
        interrupt(&polling, 2);
    }

    #[test]
    fn what_has_ended_at_once_says_nothing() {
        let polling = Polling::new();
        for pause in [2, 4, 8] {
            assert!(polling.goes_ahead(|| false));
            interrupt(&polling, pause);
        }
    }

    #[test]
    fn interrupts_while_not_ahead_say_nothing() {
        let polling = Polling::new();
        assert!(polling.goes_ahead(|| true));
        for _ in 0..3 {
            polling.interrupted.store(true, Relaxed);
            assert!(!polling.goes_ahead(|| true));
        }
        assert!(polling.goes_ahead(|| true));
        assert!(!polling.interrupted.load(Relaxed));
    }
}
