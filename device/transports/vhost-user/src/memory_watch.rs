// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A timeout for the memory table, which the monitor has to send at a start.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringbar_engine::Threads;
use tracing::debug;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// The timeout expires at this time.
    Armed(Instant),
    Ended,
}

/// A timer that calls back on a thread of its own. The thread ends when the timer is dropped.
#[derive(Debug)]
pub(crate) struct MemoryWatch(Arc<(Mutex<State>, Condvar)>);

impl MemoryWatch {
    /// A timer that is not armed; `overdue` is called each time that it expires.
    pub(crate) fn new(
        threads: &Threads,
        overdue: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(State::Idle), Condvar::new()));
        let other = Arc::clone(&shared);
        threads.spawn("memory-watch", move || watch(&other, overdue))?;
        Ok(Self(shared))
    }

    fn set(&self, state: State) {
        *lock(&self.0.0) = state;
        self.0.1.notify_one();
    }

    /// Arms the timer to expire after `time`.
    pub(crate) fn arm(&self, time: Duration) {
        self.set(State::Armed(Instant::now() + time));
    }

    /// Disarms the timer. A callback may be running already.
    pub(crate) fn disarm(&self) {
        self.set(State::Idle);
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.set(State::Ended);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Each change is a single assignment.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch((state, changed): &(Mutex<State>, Condvar), overdue: impl Fn()) {
    let mut guard = lock(state);
    loop {
        let timeout = match *guard {
            State::Ended => return,
            State::Idle => Duration::MAX,
            State::Armed(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    *guard = State::Idle;
                    drop(guard);
                    overdue();
                    guard = lock(state);
                    continue;
                }
                left
            }
        };
        guard = match changed.wait_timeout(guard, timeout) {
            Ok((guard, _)) => guard,
            Err(poisoned) => {
                debug!("the state of the memory watch is whole all the same");
                poisoned.into_inner().0
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn ho3_timeout_is_reported_once_and_not_after_disarm() {
        let (sender, receiver) = channel();
        let watch =
            MemoryWatch::new(&Threads::default(), move || sender.send(()).unwrap()).unwrap();
        watch.arm(Duration::from_secs(1000));
        watch.disarm();
        watch.arm(Duration::from_millis(1));
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        watch.disarm();
        drop(watch);
        // The thread has ended without another report.
        assert!(receiver.recv_timeout(Duration::from_secs(10)).is_err());
        assert!(receiver.try_recv().is_err());
    }
}
