// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The thread that gives frames to buffers when they are due.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::frames::{Frame, Frames};

/// What thread and handle share.
struct Shared<B> {
    state: Mutex<State<B>>,
    /// There is a buffer, or the end.
    changed: Condvar,
    start: Instant,
}

struct State<B> {
    frames: Frames<B>,
    ended: bool,
}

impl<B> Shared<B> {
    fn state(&self) -> MutexGuard<'_, State<B>> {
        // The state is valid after each statement that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle of the thread, which ends when the handle is dropped.
pub struct Clock<B: Send + 'static>(Arc<Shared<B>>);

impl<B: Send> fmt::Debug for Clock<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

impl<B: Send> Clock<B> {
    /// Starts the thread, which calls `fill` with each buffer, and without a lock.
    ///
    /// # Errors
    ///
    /// If there can be no more threads.
    pub fn new(
        period: Duration,
        fill: impl Fn(B, Frame) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                frames: Frames::new(period),
                ended: false,
            }),
            changed: Condvar::new(),
            start: Instant::now(),
        });
        let own = Arc::clone(&shared);
        thread::Builder::new()
            .name("frames".into())
            .spawn(move || run(&own, fill))?;
        Ok(Self(shared))
    }

    /// Takes a buffer for a frame.
    pub fn post(&self, buffer: B) {
        let now = self.0.start.elapsed();
        self.0.state().frames.post(buffer, now);
        self.0.changed.notify_one();
    }

    /// Number of frames that were dropped.
    pub fn dropped(&self) -> u64 {
        self.0.state().frames.dropped()
    }

    /// Drops the buffers, and begins anew with the next one.
    pub fn stop(&self) {
        // Without the lock: dropping a request notifies its worker.
        let buffers = self.0.state().frames.stop();
        drop(buffers);
    }
}

impl<B: Send> Drop for Clock<B> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_one();
    }
}

fn run<B>(shared: &Shared<B>, fill: impl Fn(B, Frame)) {
    let mut state = shared.state();
    while !state.ended {
        let now = shared.start.elapsed();
        if let Some((buffer, frame)) = state.frames.take(now) {
            drop(state);
            fill(buffer, frame);
            state = shared.state();
            continue;
        }
        state = match state.frames.due() {
            Some(due) => {
                let left = due.saturating_sub(now);
                let waited = shared.changed.wait_timeout(state, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn each_buffer_gets_a_frame_and_the_thread_ends() {
        let (sender, filled) = channel();
        let clock = Clock::new(Duration::from_micros(1), move |buffer, frame: Frame| {
            sender.send((buffer, frame)).unwrap();
        })
        .unwrap();
        (0..10).for_each(|buffer| clock.post(buffer));
        let timeout = Duration::from_secs(20);
        for expected in 0..10 {
            let (buffer, frame) = filled.recv_timeout(timeout).unwrap();
            assert_eq!(buffer, expected);
            assert_eq!(frame.sequence, expected + frame.dropped);
        }
        drop(clock);
        // The thread drops its sender.
        assert!(filled.recv_timeout(timeout).is_err());
    }
}
