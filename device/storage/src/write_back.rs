// SPDX-License-Identifier: Apache-2.0 OR MIT

//! That no error of writing back is missed.
//!
//! The kernel reports data that it could not write back to one flush of an open file,
//! once; the next flush ends well, although the data is gone. So the first error is
//! kept. And it is reported to one of several flushes that overlap, whoever comes
//! first, while the data may be another's. So flushes that overlap are known only when
//! the last of those is, that were in progress when one ended.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Flushes in progress and the first error of any.
#[derive(Debug)]
pub(crate) struct WriteBack<E> {
    error: OnceLock<E>,
    state: Mutex<State>,
    ended: Condvar,
}

impl<E> Default for WriteBack<E> {
    fn default() -> Self {
        Self {
            error: OnceLock::new(),
            state: Mutex::default(),
            ended: Condvar::new(),
        }
    }
}

/// A flush has a number, counted up.
#[derive(Debug, Default)]
struct State {
    next: u64,
    in_progress: Vec<u64>,
}

impl<E> WriteBack<E> {
    /// After a flush that has failed, perhaps in another process.
    pub(crate) fn failed(error: E) -> Self {
        Self {
            error: OnceLock::from(error),
            ..Self::default()
        }
    }

    /// The first error there was.
    pub(crate) fn error(&self) -> Option<&E> {
        self.error.get()
    }

    /// Runs `flush`, unless one has failed before.
    ///
    /// # Errors
    ///
    /// The first error there was, if there was any before `flush` and those that
    /// overlap it ended.
    pub(crate) fn flush(&self, flush: impl FnOnce() -> Result<(), E>) -> Result<(), &E> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        let number = {
            let mut state = self.state();
            let number = state.next;
            state.next += 1;
            state.in_progress.push(number);
            number
        };
        /// Ends it however `flush` ends.
        struct End<'a, E>(&'a WriteBack<E>, u64);
        impl<E> Drop for End<'_, E> {
            fn drop(&mut self) {
                self.0.state().in_progress.retain(|other| *other != self.1);
                self.0.ended.notify_all();
            }
        }
        {
            let _end = End(self, number);
            if let Err(error) = flush() {
                let _ = self.error.set(error);
            }
        }
        let state = self.state();
        let overlap = state.next;
        drop(
            self.ended
                .wait_while(state, |state| {
                    self.error.get().is_none()
                        && state.in_progress.iter().any(|other| *other < overlap)
                })
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.error().map_or(Ok(()), Err)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn ho7_the_first_error_stays() {
        let flushes = WriteBack::default();
        assert_eq!(flushes.flush(|| Ok(())), Ok(()));
        assert_eq!(flushes.flush(|| Err(1)), Err(&1));
        assert_eq!(flushes.flush(|| Ok(())), Err(&1));
        assert_eq!(flushes.flush(|| Err(2)), Err(&1));
        assert_eq!(flushes.error(), Some(&1));
    }

    /// The kernel tells one of two flushes. The other may have ended before that one has
    /// told us.
    #[test]
    fn ho7_an_error_told_to_another_flush_is_not_missed() {
        let flushes = WriteBack::default();
        let (begun, wait_begun) = channel();
        let (go_on, wait) = channel::<()>();
        let (done, ended) = channel();
        let flushes = &flushes;
        // The channel ends with the closure, so that the first one ends whatever comes.
        thread::scope(move |scope| {
            scope.spawn(move || {
                flushes.flush(|| {
                    begun.send(()).unwrap();
                    let _ = wait.recv();
                    Err("lost")
                })
            });
            wait_begun.recv().unwrap();
            scope.spawn(move || done.send(flushes.flush(|| Ok(()))).unwrap());
            // It has nothing to wait for but the first one.
            let deadline = Instant::now() + Duration::from_secs(10);
            while flushes.state().next < 2 || flushes.state().in_progress.len() > 1 {
                assert!(Instant::now() < deadline, "the second one does not end");
                thread::yield_now();
            }
            assert!(ended.try_recv().is_err(), "it ended before the first one");
            go_on.send(()).unwrap();
            assert_eq!(ended.recv().unwrap(), Err(&"lost"));
        });
    }

    #[test]
    fn a_flush_that_panics_is_no_longer_in_progress() {
        let flushes = WriteBack::<()>::default();
        let panics = std::panic::AssertUnwindSafe(|| flushes.flush(|| panic!("on purpose")));
        std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(flushes.flush(|| Ok(())), Ok(()));
    }
}
