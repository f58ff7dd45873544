// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The thread of a ring, and the way to it.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::ring::{Ring, Waker};
use super::scheduler::{Scheduler, Submitted};
use crate::extent::Owner;
use crate::failure::Failure;

/// What the thread of the ring is told.
pub(super) enum Message {
    Submit(Submitted),
    Cancel(Owner),
    /// To end, once the operations that have begun have ended.
    End,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) messages: Vec<Message>,
    /// The thread waits in the ring, or is about to.
    asleep: bool,
    /// The thread has ended.
    closed: bool,
}

/// The way to the thread of the ring.
pub(super) struct Inbox {
    state: Mutex<State>,
    waker: Waker,
}

impl Inbox {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            state: Mutex::default(),
            waker,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the message where the thread has ended.
    pub(super) fn post(&self, message: Message) -> Result<(), Message> {
        let asleep = {
            let mut state = self.state();
            if state.closed {
                return Err(message);
            }
            state.messages.push(message);
            std::mem::take(&mut state.asleep)
        };
        if asleep {
            (self.waker)();
        }
        Ok(())
    }

    /// Takes an owner's operations out, and tells the thread. A thread that is held up gets
    /// no more of them, however often somebody submits and cancels.
    pub(super) fn cancel(&self, owner: Owner) {
        let of_owner = |message: &mut Message| match message {
            Message::Submit(submitted) => submitted.owner == owner,
            Message::Cancel(other) => *other == owner,
            Message::End => false,
        };
        let mut state = self.state();
        let cancelled: Vec<_> = state.messages.extract_if(.., of_owner).collect();
        drop(state);
        // Not with the lock held: whoever waits for them is told.
        drop(cancelled);
        // Where the thread has ended there is nothing to cancel.
        let _ = self.post(Message::Cancel(owner));
    }

    /// The thread is awake, and will take messages before it waits.
    fn wake_up(&self) {
        self.state().asleep = false;
    }

    /// Swaps the messages for `empty`. Where there are none, the next one wakes the thread.
    fn take(&self, empty: &mut Vec<Message>) {
        let mut state = self.state();
        std::mem::swap(&mut state.messages, empty);
        state.asleep = empty.is_empty();
    }

    fn close(&self) -> Vec<Message> {
        let mut state = self.state();
        state.closed = true;
        std::mem::take(&mut state.messages)
    }
}

/// Executes what is in the inbox until it is to end. A panic is noted in `failure`.
pub(super) fn run<R: Ring>(
    mut ring: R,
    mut scheduler: Scheduler,
    inbox: &Inbox,
    failure: &OnceLock<Failure>,
) {
    /// Closes the inbox however the thread ends. What is left is dropped, and so the requests
    /// behind it are answered.
    struct Close<'a>(&'a Inbox, &'a OnceLock<Failure>);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let what = "the thread of the ring has panicked".into();
                Failure::new(what, None).note(self.1);
            }
            drop(self.0.close());
        }
    }

    let (mut messages, mut ended) = (Vec::new(), Vec::new());
    // Dropped before what it answers.
    let close = Close(inbox, failure);
    let mut ends = false;
    loop {
        inbox.take(&mut messages);
        let is_idle = messages.is_empty();
        for message in messages.drain(..) {
            match message {
                Message::Submit(submitted) => scheduler.accept(submitted),
                Message::Cancel(owner) => scheduler.cancel(owner),
                Message::End => ends = true,
            }
        }
        if ends {
            scheduler.cancel_all();
            if !scheduler.is_busy() {
                return;
            }
        }
        scheduler.push(&mut ring);
        let turned = ring.turn(is_idle, &mut ended);
        inbox.wake_up();
        if let Err(error) = turned {
            for message in close.0.close() {
                if let Message::Submit(submitted) = message {
                    scheduler.accept(submitted);
                }
            }
            return scheduler.give_up(&format!("{} cannot be used any more ({error})", R::NAME));
        }
        for (io, result) in ended.drain(..) {
            scheduler.ended(io, result);
        }
        scheduler.push(&mut ring);
    }
}
