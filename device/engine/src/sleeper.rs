// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How a worker goes to sleep without missing a notification.
//!
//! ```text
//!  worker: fall_asleep(): asleep = true; fence; check notified and the rings; wait
//!  others: notify():      notified = true; fence; asleep? wake
//! ```
//!
//! Each side writes its flag before it reads the other's, with a full fence in between, so
//! at least one of them sees the other (store buffering).

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// State of a worker as others see it.
#[derive(Debug)]
pub(crate) struct Sleeper {
    /// There is mail.
    notified: AtomicBool,
    /// The worker sleeps, or is about to.
    asleep: AtomicBool,
}

impl Sleeper {
    pub(crate) fn new() -> Self {
        Self {
            notified: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
        }
    }

    /// Tells the worker that there is mail, which must have been put where the worker finds
    /// it. Returns whether the caller has to wake it.
    #[must_use]
    pub(crate) fn notify(&self) -> bool {
        self.notified.store(true, Ordering::Release);
        self.ring()
    }

    /// Tells the worker that there are requests in a ring. Returns whether the caller has to
    /// wake it.
    #[must_use]
    pub(crate) fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // One of several callers wakes it.
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }

    /// Whether there is mail. For the worker, as often as it likes.
    pub(crate) fn is_notified(&self) -> bool {
        self.notified.load(Ordering::Relaxed)
    }

    /// Takes note of the mail, which is to be read after this.
    pub(crate) fn take_notified(&self) -> bool {
        self.is_notified() && self.notified.swap(false, Ordering::Acquire)
    }

    /// Announces that the worker sleeps unless `has_work`, which looks into the rings, finds
    /// something. Returns whether it may wait to be woken.
    pub(crate) fn fall_asleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.is_notified() || has_work() {
            self.wake_up();
            return false;
        }
        true
    }

    /// The worker does not sleep any more, whatever woke it.
    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool as Flag, AtomicU32};
    use loom::thread;

    use super::*;

    /// A worker that sleeps for ever has missed what was sent: mail or a doorbell.
    fn never_missed(mail: bool) {
        loom::model(move || {
            let sleeper = Arc::new(Sleeper::new());
            let (sent, wakes) = (Arc::new(Flag::new(false)), Arc::new(AtomicU32::new(0)));
            let sender = {
                let (sleeper, sent, wakes) = (sleeper.clone(), sent.clone(), wakes.clone());
                thread::spawn(move || {
                    sent.store(true, Ordering::Relaxed);
                    let wake = if mail {
                        sleeper.notify()
                    } else {
                        sleeper.ring()
                    };
                    if wake {
                        wakes.fetch_add(1, Ordering::Relaxed);
                    }
                })
            };
            let seen = match mail {
                true => sleeper.take_notified() && sent.load(Ordering::Relaxed),
                false => sent.load(Ordering::Relaxed),
            };
            let asleep = !seen && sleeper.fall_asleep(|| !mail && sent.load(Ordering::Relaxed));
            sender.join().unwrap();
            if asleep {
                assert_eq!(wakes.load(Ordering::Relaxed), 1, "nobody wakes the worker");
            }
        });
    }

    #[test]
    fn mail_is_not_missed() {
        never_missed(true);
    }

    #[test]
    fn doorbells_are_not_missed() {
        never_missed(false);
    }

    /// What was put there before the notification is seen once it is taken.
    #[test]
    fn mail_is_there_when_it_is_announced() {
        loom::model(|| {
            let sleeper = Arc::new(Sleeper::new());
            let mail = Arc::new(AtomicU32::new(0));
            let sender = {
                let (sleeper, mail) = (sleeper.clone(), mail.clone());
                thread::spawn(move || {
                    mail.store(7, Ordering::Relaxed);
                    let _ = sleeper.notify();
                })
            };
            if sleeper.take_notified() {
                assert_eq!(mail.load(Ordering::Relaxed), 7);
            }
            sender.join().unwrap();
        });
    }

    /// Memory that was replaced is not used any more once the worker has answered mail that
    /// came after: it takes memory anew after it has read its mail.
    #[test]
    fn replaced_memory_is_not_used_after_the_answer() {
        const OLD: u32 = 1;
        const NEW: u32 = 2;
        loom::model(|| {
            let sleeper = Arc::new(Sleeper::new());
            let memory = Arc::new(AtomicU32::new(OLD));
            let (mail, answered) = (Arc::new(Flag::new(false)), Arc::new(Flag::new(false)));
            let unmapped = Arc::new(Flag::new(false));
            let worker = {
                let (sleeper, memory, mail) = (sleeper.clone(), memory.clone(), mail.clone());
                let (answered, unmapped) = (answered.clone(), unmapped.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        if sleeper.take_notified() && mail.load(Ordering::Relaxed) {
                            answered.store(true, Ordering::Release);
                        }
                        if memory.load(Ordering::Acquire) == OLD {
                            assert!(!unmapped.load(Ordering::Relaxed), "used after unmap");
                        }
                    }
                })
            };
            memory.store(NEW, Ordering::Release);
            mail.store(true, Ordering::Relaxed);
            let _ = sleeper.notify();
            if answered.load(Ordering::Acquire) {
                unmapped.store(true, Ordering::Relaxed);
            }
            worker.join().unwrap();
        });
    }
}
