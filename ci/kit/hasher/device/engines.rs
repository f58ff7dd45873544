// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The engines of the card: threads, each of which has one job at a time.

use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

/// Greatest number of waiting jobs. A guest that resets the card repeatedly leaves jobs behind whose
/// results are ignored.
const MAX_WAITING: usize = 256;

/// Handle of the engines, which end when it is dropped.
pub struct Engines<J>(SyncSender<J>);

impl<J> fmt::Debug for Engines<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").finish_non_exhaustive()
    }
}

impl<J: Send + 'static> Engines<J> {
    /// Starts `count` engines, which call `execute`.
    ///
    /// # Errors
    ///
    /// If there can be no more threads.
    pub fn new(count: u16, execute: fn(J)) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new()
                .name("engine".into())
                .spawn(move || run(&receiver, execute))?;
        }
        Ok(Self(sender))
    }

    /// Gives a job to the engines. Returns it if too many wait. Never waits.
    pub fn start(&self, job: J) -> Result<(), J> {
        self.0.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }
}

fn run<J>(jobs: &Mutex<Receiver<J>>, execute: fn(J)) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => execute(job),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn jobs_run_at_the_same_time_and_too_many_come_back() {
        // Each job waits for the end of its pair, so two have to run at the same time.
        type Job = (Sender<()>, Receiver<()>);
        let engines = Engines::<Job>::new(2, |(done, wait)| {
            wait.recv_timeout(TIMEOUT).unwrap();
            done.send(()).unwrap();
        })
        .unwrap();
        let (done, finished) = channel();
        let mut go = Vec::new();
        let mut job = || {
            let (sender, wait) = channel();
            go.push(sender);
            (done.clone(), wait)
        };
        let mut started = 0;
        let refused = loop {
            match engines.start(job()) {
                Ok(()) => started += 1,
                Err(job) => break job,
            }
        };
        // Some engines may have taken one already.
        assert!((MAX_WAITING..=MAX_WAITING + 2).contains(&started));
        // The second job ends before the first.
        go[1].send(()).unwrap();
        finished.recv_timeout(TIMEOUT).unwrap();
        for go in &go {
            // The first pair has ended, and the last job was refused.
            let _ = go.send(());
        }
        drop(refused);
        (1..started).for_each(|_| finished.recv_timeout(TIMEOUT).unwrap());
    }
}
