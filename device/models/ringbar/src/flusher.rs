// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A thread that flushes the storage. A flush may wait for a disk, and a worker has other
//! queues to process.
//!
//! The thread merges all flushes that wait into one flush of the storage, as a group commit
//! does: each of them was requested before that one begins.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use ringbar_engine::Threads;
use ringbar_storage::{Storage, StorageError};

use crate::executor::Flush;

/// Greatest number of waiting flushes. Beyond it the caller executes a flush itself: a guest
/// that resets the device repeatedly leaves behind flushes whose results are ignored.
const LIMIT: usize = 1 << 14;

/// Greatest number of ranges that are flushed one by one; more are merged into a flush of the
/// whole storage.
const MAX_RANGES: usize = 8;

/// Callback with the result, called on the flusher's thread. It must not block.
type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// Handle of the thread. The thread ends when the handle is dropped, after the flush in
/// progress.
pub(crate) struct Flusher {
    sender: Mutex<Sender<(Flush, Done)>>,
    storage: Arc<dyn Storage>,
    /// Number of flushes that are waiting or in progress.
    waiting: Arc<AtomicUsize>,
}

impl fmt::Debug for Flusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher").finish_non_exhaustive()
    }
}

impl Flusher {
    /// Starts the thread.
    pub(crate) fn new(storage: Arc<dyn Storage>, threads: &Threads) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let waiting = Arc::<AtomicUsize>::default();
        let (own, count) = (Arc::clone(&storage), Arc::clone(&waiting));
        threads.spawn("flusher", move || run(own.as_ref(), &receiver, &count))?;
        Ok(Self {
            sender: Mutex::new(sender),
            storage,
            waiting,
        })
    }

    /// Requests a flush. Returns without waiting for it, unless [`LIMIT`] flushes wait already:
    /// then the caller executes it. Where the thread has panicked, `done` is dropped.
    pub(crate) fn flush(
        &self,
        flush: Flush,
        done: impl FnOnce(Result<(), StorageError>) + Send + 'static,
    ) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= LIMIT {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return done(flush.execute(self.storage.as_ref()));
        }
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only where the thread has panicked.
        let _ = sender.send((flush, Box::new(done)));
    }
}

fn run(storage: &dyn Storage, receiver: &Receiver<(Flush, Done)>, count: &AtomicUsize) {
    while let Ok(first) = receiver.recv() {
        let waiting: Vec<_> = std::iter::once(first).chain(receiver.try_iter()).collect();
        let number = waiting.len();
        let all = number > MAX_RANGES || waiting.iter().any(|(flush, _)| *flush == Flush::All);
        if all {
            let mut flushed = storage.flush();
            for (_, done) in waiting {
                // The first callback gets the error with its causes, the others a duplicate.
                let same = flushed.as_ref().copied().map_err(StorageError::duplicate);
                done(std::mem::replace(&mut flushed, same));
            }
        } else {
            for (flush, done) in waiting {
                done(flush.execute(storage));
            }
        }
        count.fetch_sub(number, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::fixtures::HookedStorage;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn waiting_flushes_are_merged() {
        let (begun, begins) = channel();
        let (go_on, goes_on) = channel::<()>();
        let goes_on = Mutex::new(goes_on);
        let count = Arc::<AtomicU32>::default();
        let flushes = Arc::clone(&count);
        let mut storage = HookedStorage::new(4096);
        storage.on_flush = Box::new(move || {
            flushes.fetch_add(1, Ordering::Relaxed);
            begun.send(()).unwrap();
            goes_on.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
        });
        let flusher = Flusher::new(Arc::new(storage), &Threads::default()).unwrap();
        let (sender, done) = channel();
        let ask = |number| {
            let sender = sender.clone();
            flusher.flush(Flush::All, move |result| {
                sender.send((number, result.is_ok())).unwrap();
            });
        };
        ask(0);
        begins.recv_timeout(TIMEOUT).unwrap();
        (1..=200).for_each(ask);
        // The first began before the others were asked for.
        go_on.send(()).unwrap();
        begins.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(done.try_iter().collect::<Vec<_>>(), [(0, true)]);
        go_on.send(()).unwrap();
        for number in 1..=200 {
            assert_eq!(done.recv_timeout(TIMEOUT).unwrap(), (number, true));
        }
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
