// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Makes data durable on a thread of its own: a flush may wait for a disk, and the worker
//! of a queue has others to process.
//!
//! All flushes that wait when the thread comes to them are one flush of the storage, as with
//! a group commit: each of them was asked for before that began.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use ringbar_storage::{Storage, StorageError};

use crate::executor::Flush;

/// Called with the result, on the thread that flushes. It must not block.
type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// Asks for flushes. The thread ends when this is dropped, after the flush that it is at.
pub(crate) struct Flusher(Mutex<Sender<(Flush, Done)>>);

impl fmt::Debug for Flusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher").finish_non_exhaustive()
    }
}

impl Flusher {
    /// Starts the thread.
    pub(crate) fn new(storage: Arc<dyn Storage>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        thread::Builder::new()
            .name("flusher".into())
            .spawn(move || run(storage.as_ref(), &receiver))?;
        Ok(Self(Mutex::new(sender)))
    }

    /// Asks for a flush. Does not wait. Where the thread has ended, `done` is dropped.
    pub(crate) fn flush(
        &self,
        flush: Flush,
        done: impl FnOnce(Result<(), StorageError>) + Send + 'static,
    ) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only where the thread has panicked.
        let _ = sender.send((flush, Box::new(done)));
    }
}

fn run(storage: &dyn Storage, receiver: &Receiver<(Flush, Done)>) {
    while let Ok(first) = receiver.recv() {
        let waiting: Vec<_> = std::iter::once(first).chain(receiver.try_iter()).collect();
        let all = waiting.iter().any(|(flush, _)| *flush == Flush::All);
        if !all {
            for (flush, done) in waiting {
                done(flush.execute(storage));
            }
            continue;
        }
        let flushed = storage.flush();
        for (_, done) in waiting {
            let result = flushed.as_ref().copied();
            done(result.map_err(StorageError::duplicate));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::session::tests::HookedStorage;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn flushes_that_wait_become_one() {
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
        let flusher = Flusher::new(Arc::new(storage)).unwrap();
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
