// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A connection of a monitor, and the worker that serves it.

use std::io;
use std::time::Instant;

use tracing::error;

use crate::channel::Received;
use crate::session::{Runs, Session};
use crate::worker::Worker;

/// One connection, from the worker that waits for it to its end.
pub(crate) struct Serving {
    pub(crate) runs: Runs,
    pub(crate) worker: Option<Worker>,
    pub(crate) session: Option<Session>,
    /// When the next worker starts, where there is none.
    pub(crate) start_at: Instant,
}

impl Serving {
    /// The monitor's channel is ready. Returns whether it is still there.
    pub(crate) fn monitor_ready(&mut self) -> io::Result<bool> {
        let Some(session) = &mut self.session else {
            return Ok(true);
        };
        if session.monitor.flush().is_err() {
            return Ok(false);
        }
        match &mut self.worker {
            Some(worker) if session.accepts(Some(worker)) => session.monitor_ready(worker),
            // Only the end shows while no message is wanted.
            _ => Ok(session.monitor.is_flushed() && !session.monitor.has_hung_up()),
        }
    }

    /// The worker's channel is ready.
    pub(crate) fn worker_ready(&mut self) -> io::Result<()> {
        let Some(worker) = &mut self.worker else {
            return Ok(());
        };
        if worker.channel.flush().is_err() {
            worker.disconnected();
            return Ok(());
        }
        while worker.is_connected {
            match worker.channel.receive() {
                Ok(Received::Nothing) => return Ok(()),
                Ok(Received::Message(message)) => {
                    let is_right = match &mut self.session {
                        Some(session) => session.worker_message(message, worker, &mut self.runs)?,
                        None => false,
                    };
                    if !is_right {
                        error!("the worker sends what nobody has asked for");
                        worker.disconnected();
                        worker.kill();
                    }
                }
                Ok(Received::End) => worker.disconnected(),
                Err(error) => {
                    error!(%error, "the worker breaks the protocol");
                    worker.disconnected();
                    worker.kill();
                }
            }
        }
        Ok(())
    }
}
