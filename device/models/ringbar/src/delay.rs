// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A thread that does things later, for requests that a rule delays: a worker must not wait.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringbar_engine::Threads;
use tracing::warn;

/// Called by the thread. It must not block.
type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    /// By the time at which they are due, and in the order in which they came; with their queues.
    waiting: BTreeMap<(Instant, u64), (u16, Action)>,
    /// How many have come.
    number: u64,
    has_thread: bool,
    /// The handle was dropped.
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done with the lock held can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle of the thread, which starts with the first delay. What waits when the handle is
/// dropped is dropped too.
pub(crate) struct Delayer {
    shared: Arc<Shared>,
    threads: Threads,
}

impl fmt::Debug for Delayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delayer").finish_non_exhaustive()
    }
}

impl Delayer {
    /// Without a thread so far.
    pub(crate) fn new(threads: Threads) -> Self {
        Self {
            shared: Arc::default(),
            threads,
        }
    }

    /// Calls `action` after `delay`, on behalf of `queue`. Never blocks. Without a thread, calls
    /// it at once.
    pub(crate) fn delay(
        &self,
        queue: u16,
        delay: Duration,
        action: impl FnOnce() + Send + 'static,
    ) {
        let mut state = self.shared.state();
        if !state.has_thread {
            let shared = Arc::clone(&self.shared);
            let thread = self.threads.spawn("delayer", move || run(&shared));
            if let Err(error) = thread {
                drop(state);
                warn!(%error, "cannot start a thread: a request is not delayed");
                return action();
            }
            state.has_thread = true;
        }
        let key = (Instant::now() + delay, state.number);
        state.number += 1;
        state.waiting.insert(key, (queue, Box::new(action)));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Drops what waits on behalf of a queue.
    pub(crate) fn cancel(&self, queue: u16) {
        self.shared
            .state()
            .waiting
            .retain(|_, (owner, _)| *owner != queue);
    }
}

impl Drop for Delayer {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.shared.changed.notify_one();
        drop(waiting);
    }
}

fn run(shared: &Shared) {
    let mut state = shared.state();
    while !state.closed {
        let now = Instant::now();
        let left = state
            .waiting
            .first_key_value()
            .map(|((due, _), _)| due.saturating_duration_since(now));
        state = match left {
            Some(Duration::ZERO) => {
                let due = state.waiting.pop_first();
                drop(state);
                if let Some((_, (_, action))) = due {
                    action();
                }
                shared.state()
            }
            Some(left) => {
                let waited = shared.changed.wait_timeout(state, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = shared.changed.wait(state);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn actions_come_when_they_are_due() {
        let delayer = Delayer::new(Threads::default());
        let (sender, receiver) = channel();
        let start = Instant::now();
        // The first one is the last that is due.
        let delays = [
            TIMEOUT,
            Duration::from_millis(20),
            Duration::from_millis(10),
        ];
        for (number, delay) in delays.into_iter().enumerate() {
            let sender = sender.clone();
            delayer.delay(0, delay, move || {
                sender.send((number, start.elapsed())).unwrap();
            });
        }
        for _ in 0..2 {
            let (number, elapsed) = receiver.recv_timeout(TIMEOUT).unwrap();
            assert!(
                number > 0 && elapsed >= delays[number],
                "{number}: {elapsed:?}"
            );
        }
    }

    #[test]
    fn what_is_cancelled_or_left_is_dropped() {
        let delayer = Delayer::new(Threads::default());
        let later = |queue| {
            let (sender, receiver) = channel::<()>();
            delayer.delay(queue, TIMEOUT, move || sender.send(()).unwrap());
            receiver
        };
        let (first, second) = (later(1), later(2));
        delayer.cancel(1);
        assert_eq!(
            first.recv_timeout(Duration::ZERO),
            Err(RecvTimeoutError::Disconnected)
        );
        assert_eq!(
            second.recv_timeout(Duration::ZERO),
            Err(RecvTimeoutError::Timeout)
        );
        drop(delayer);
        assert_eq!(
            second.recv_timeout(Duration::ZERO),
            Err(RecvTimeoutError::Disconnected)
        );
    }
}
