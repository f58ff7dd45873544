// SPDX-License-Identifier: GPL-2.0

//! Whether a submitter busy-polls for its requests, or relies on the interrupt.
//!
//! An interrupt costs more than most requests: raising it, leaving the idle state, waking the task.
//! So a submitter that has rung the doorbell busy-polls the used ring for a limited time, with the
//! interrupts of the queue off. Busy-polling is wasted if the device is slow or stopped. So the
//! driver never polls for requests of more than 1 MiB, and after several consecutive misses the
//! queue relies on interrupts for a number of doorbells that doubles with each miss.
//!
//! There are two modes for a submitter that need not wait. The driver does not know the
//! caller's queue depth, so it probes: deferring completions is worthwhile while the next
//! submission arrives before the interrupt, which the device delays a little.
//!
//! | mode | after the doorbell | earlier requests are completed by | ends when |
//! |---|---|---|---|
//! | *pipelined*: completions are deferred | the submitter returns at once | the next submission | an interrupt completes requests before the next submission: then `2, 4, 8 ... 1024` doorbells in the other mode |
//! | *wait-poll* | the submitter busy-polls for up to `poll_us`, and once more for each 128 KiB | this submission | the doorbells of the back-off are over |
//!
//! In wait-poll mode a second back-off applies: after 3 consecutive misses no submitter polls for
//! `2, 4, 8 ... 64` doorbells. A hit ends both.
//!
//! The policy accesses no queue: its functions take events and return decisions.

use kernel::{
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::Delta, //
};

/// The choice of a submitter after the doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitStrategy {
    /// Wait for the interrupt: no caller gains by an earlier completion.
    Interrupt,
    /// Busy-poll for the requests, which transfer this number of bytes together.
    BusyPoll(usize),
}

impl WaitStrategy {
    /// Number of bytes that the requests transfer together, if the submitter is to busy-poll.
    pub(crate) fn poll_bytes(self) -> Option<usize> {
        match self {
            Self::BusyPoll(bytes) => Some(bytes),
            Self::Interrupt => None,
        }
    }

    /// Busy-poll time, where `limit` is the time for a request without data; `None` disables
    /// busy-polling.
    #[inline(always)]
    fn poll_time(self, limit: Delta) -> Option<Delta> {
        match self {
            // CAST: A small number.
            Self::BusyPoll(bytes) if bytes <= MAX_POLLED_BYTES => {
                Some(limit * (1 + bytes / BYTES_PER_LIMIT) as i64)
            }
            _ => None,
        }
    }
}

/// Greatest number of bytes of the requests for which a submitter busy-polls together. Beside the
/// time for a larger transfer, the cost of an interrupt is small.
const MAX_POLLED_BYTES: usize = 1 << 20;

/// Number of bytes for which the busy-poll time of a request without data is added once more.
const BYTES_PER_LIMIT: usize = 128 << 10;

/// Binary logarithm of the greatest number of doorbells without busy-polling after misses.
const MAX_MISS_EXPONENT: u32 = 6;

/// Number of consecutive polling misses that are tolerated. The usual reason of a miss is a short
/// delay of a thread, and interrupts would cost more than the polling time.
const TOLERATED_MISSES: u32 = 2;

/// Binary logarithm of the greatest number of doorbells in wait-poll mode, after interrupts that
/// came before the next submission. Each probe costs a submitter that has to wait one interrupt.
const MAX_PIPELINING_EXPONENT: u32 = 10;

/// Skips an action that was not worthwhile, for longer after each consecutive failure. Updated
/// without a lock: the worst effect of a lost update is a wrong guess.
struct Backoff {
    /// Number of times that are still to be skipped.
    skip: Atomic<u32>,
    /// Number of consecutive failures, up to `tolerated + max_exponent`.
    failures: Atomic<u32>,
    /// Number of consecutive failures after which nothing is skipped.
    tolerated: u32,
    /// Binary logarithm of the greatest number of times that are skipped.
    max_exponent: u32,
}

impl Backoff {
    fn new(tolerated: u32, max_exponent: u32) -> Self {
        Self {
            skip: Atomic::new(0),
            failures: Atomic::new(0),
            tolerated,
            max_exponent,
        }
    }

    /// Whether the last time failed.
    fn has_failed(&self) -> bool {
        self.failures.load(Relaxed) != 0
    }

    /// Whether to try this time. To be called once for each time.
    fn should_try(&self) -> bool {
        let skip = self.skip.load(Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Relaxed);
        }
        skip == 0
    }

    /// Records the result of a try.
    fn record(&self, success: bool) {
        if success {
            // In most cases the values are zero already; without a store the cache line stays
            // shared.
            if self.has_failed() {
                self.failures.store(0, Relaxed);
            }
            return;
        }
        let failures = (self.failures.load(Relaxed) + 1).min(self.tolerated + self.max_exponent);
        self.failures.store(failures, Relaxed);
        if let Some(exponent) = failures.checked_sub(self.tolerated + 1) {
            self.skip.store(2 << exponent, Relaxed);
        }
    }
}

/// The results of busy-polling on one queue, and the decisions that follow. Any context.
pub(super) struct PollPolicy {
    /// Busy-poll time of a request without data; `None` where busy-polling is disabled.
    limit: Option<Delta>,
    polls: Backoff,
    pipelining: Backoff,
    /// Whether the last submitter deferred its completions.
    pipelined: Atomic<bool>,
    /// Whether an interrupt has completed requests since.
    interrupted: Atomic<bool>,
}

impl PollPolicy {
    /// For a new queue. `limit` is the busy-poll time of a request without data.
    pub(super) fn new(limit: Option<Delta>) -> Self {
        Self {
            limit,
            polls: Backoff::new(TOLERATED_MISSES, MAX_MISS_EXPONENT),
            pipelining: Backoff::new(0, MAX_PIPELINING_EXPONENT),
            pipelined: Atomic::new(false),
            interrupted: Atomic::new(false),
        }
    }

    /// Time for which a submitter busy-polls after this doorbell; `None` means not at all. To be
    /// called once for each doorbell.
    ///
    /// `waits` says that the submitter sleeps until its requests have completed, so that it cannot
    /// defer completion. `earlier` returns whether earlier requests are still in flight.
    #[inline(always)]
    pub(super) fn poll_time(
        &self,
        strategy: WaitStrategy,
        waits: bool,
        earlier: impl FnOnce() -> bool,
    ) -> Option<Delta> {
        strategy
            .poll_time(self.limit?)
            .filter(|_| (waits || !self.defers_completions(earlier)) && self.polls.should_try())
    }

    /// Records the result of busy-polling: whether the requests completed in that time.
    pub(super) fn polled(&self, hit: bool) {
        self.polls.record(hit);
    }

    /// An interrupt has come for requests that no submitter was about to complete.
    pub(super) fn interrupted(&self) {
        self.interrupted.store(true, Relaxed);
    }

    /// Whether a submitter that need not wait defers its completions after this doorbell.
    fn defers_completions(&self, earlier: impl FnOnce() -> bool) -> bool {
        let interrupted = self.interrupted.load(Relaxed);
        if interrupted {
            self.interrupted.store(false, Relaxed);
        }
        let defers = if !self.pipelined.load(Relaxed) {
            self.pipelining.should_try()
        } else if interrupted {
            self.pipelining.record(false);
            false
        } else {
            // A request that completed at once gives no information.
            if self.pipelining.has_failed() && earlier() {
                self.pipelining.record(true);
            }
            true
        };
        self.pipelined.store(defers, Relaxed);
        defers
    }
}

#[kernel::macros::kunit_tests(ringbar_poll_policy)]
mod tests {
    use super::*;

    /// Number of times that are skipped until the next try.
    fn skipped(backoff: &Backoff) -> u32 {
        let mut count = 0;
        while !backoff.should_try() {
            count += 1;
        }
        count
    }

    #[test]
    fn larger_requests_are_polled_for_longer() {
        let limit = Delta::from_micros(100);
        let micros = |strategy: WaitStrategy| strategy.poll_time(limit).map(Delta::as_micros_ceil);
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
            backoff.record(true);
        }
    }

    #[test]
    fn failure_doubles_the_pause_up_to_a_limit() {
        let backoff = Backoff::new(0, 6);
        for pause in [0, 2, 4, 8, 16, 32, 64, 64, 64] {
            assert_eq!(skipped(&backoff), pause);
            backoff.record(false);
        }
        assert_eq!(skipped(&backoff), 64);
        backoff.record(true);
        assert_eq!(skipped(&backoff), 0);
        backoff.record(false);
        assert_eq!(skipped(&backoff), 2);
    }

    #[test]
    fn a_tolerated_failure_has_no_pause() {
        let backoff = Backoff::new(2, 2);
        for pause in [0, 0, 0, 2, 4, 4] {
            assert_eq!(skipped(&backoff), pause);
            backoff.record(false);
        }
    }

    /// Simulates an interrupt before the next submission, and checks that completions are not
    /// deferred the next `pause` times.
    fn interrupt(policy: &PollPolicy, pause: u32) {
        policy.interrupted();
        for _ in 0..=pause {
            assert!(!policy.defers_completions(|| true));
        }
        assert!(policy.defers_completions(|| true));
    }

    #[test]
    fn completions_are_deferred_until_an_interrupt_comes_first() {
        let policy = PollPolicy::new(None);
        for _ in 0..10 {
            assert!(policy.defers_completions(|| true));
        }
        for pause in [2, 4, 8] {
            interrupt(&policy, pause);
        }
        assert!(policy.defers_completions(|| true));
        interrupt(&policy, 2);
    }

    #[test]
    fn a_request_that_ended_at_once_says_nothing() {
        let policy = PollPolicy::new(None);
        for pause in [2, 4, 8] {
            assert!(policy.defers_completions(|| false));
            interrupt(&policy, pause);
        }
    }

    #[test]
    fn interrupts_in_wait_poll_mode_say_nothing() {
        let policy = PollPolicy::new(None);
        assert!(policy.defers_completions(|| true));
        for _ in 0..3 {
            policy.interrupted();
            assert!(!policy.defers_completions(|| true));
        }
        assert!(policy.defers_completions(|| true));
        assert!(!policy.interrupted.load(Relaxed));
    }
}
