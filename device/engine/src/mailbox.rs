// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How other threads reach a worker.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use tracing::warn;

use crate::doorbell::Doorbell;
use crate::ring::{QueueSetup, StoppedAt};
use crate::sleeper::Sleeper;

/// What is to change about a queue.
pub(crate) enum Change {
    Start(QueueSetup),
    Stop,
    Enable(bool),
    Doorbell(Option<Box<dyn Doorbell>>),
}

/// What a worker is asked to do. The sender gets its answer when that is done, or is dropped
/// where the worker has ended.
pub(crate) enum Mail {
    /// The answer is where the queue is, which means something where it is stopped.
    Change {
        queue: u16,
        change: Change,
        done: Sender<StoppedAt>,
    },
    /// To be answered when the worker uses no guest memory that it got before.
    Barrier { done: Sender<()> },
    /// A fault that was injected does not last any more.
    Wake,
    /// The worker is to end, and leaves what is in the rings.
    End,
}

/// What is in a mailbox. `R` is a request that came back.
pub(crate) struct Contents<R> {
    pub(crate) mail: VecDeque<Mail>,
    pub(crate) returned: Vec<R>,
}

impl<R> Default for Contents<R> {
    fn default() -> Self {
        Self {
            mail: VecDeque::new(),
            returned: Vec::new(),
        }
    }
}

struct State<R> {
    contents: Contents<R>,
    /// The worker has ended.
    closed: bool,
}

/// The mailbox of one worker. `R` is a request that comes back.
pub(crate) struct Mailbox<R> {
    state: Mutex<State<R>>,
    sleeper: Sleeper,
    /// Somebody waits for an answer to mail.
    has_mail: AtomicBool,
    wake: OwnedFd,
}

impl<R> fmt::Debug for Mailbox<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl<R> Mailbox<R> {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                contents: Contents::default(),
                closed: false,
            }),
            sleeper: Sleeper::new(),
            has_mail: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn state(&self) -> MutexGuard<'_, State<R>> {
        // Nothing that is done with the lock held can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts mail in. Mail to a worker that has ended is dropped.
    pub(crate) fn post(&self, mail: Mail) {
        self.put(|contents| {
            contents.mail.push_back(mail);
            self.has_mail.store(true, Ordering::Relaxed);
        });
    }

    /// Whether the worker should read its mail before the next step of a request. Requests
    /// that were completed elsewhere can wait for the end of a batch.
    pub(crate) fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Relaxed)
    }

    /// Returns a request to its queue.
    pub(crate) fn give_back(&self, request: R) {
        self.put(|contents| contents.returned.push(request));
    }

    fn put(&self, put: impl FnOnce(&mut Contents<R>)) {
        {
            let mut state = self.state();
            if state.closed {
                return;
            }
            put(&mut state.contents);
        }
        if self.sleeper.notify() {
            self.wake();
        }
    }

    /// Says that a queue of the worker has requests.
    pub(crate) fn ring(&self) {
        if self.sleeper.ring() {
            self.wake();
        }
    }

    fn wake(&self) {
        match rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => warn!(%error, "cannot wake a worker"),
        }
    }

    /// How the worker sleeps.
    pub(crate) fn sleeper(&self) -> &Sleeper {
        &self.sleeper
    }

    /// Readable once the worker was woken.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes [`Self::wake_fd`] unreadable.
    pub(crate) fn acknowledge(&self) {
        // The count does not matter, and there may be none.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Swaps what there is for `empty`, so that its memory is used again.
    pub(crate) fn take(&self, empty: &mut Contents<R>) {
        let mut state = self.state();
        std::mem::swap(&mut state.contents, empty);
        self.has_mail.store(false, Ordering::Relaxed);
    }

    /// The worker has ended: drops what there is and what will come.
    pub(crate) fn close(&self) {
        let contents = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.contents)
        };
        // Not with the lock held: a request that is dropped comes back here.
        drop(contents);
    }
}
