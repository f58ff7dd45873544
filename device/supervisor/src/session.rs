// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One connection of a monitor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ringbar_engine::Record;
use tracing::debug;

use crate::back_channel::BackChannel;
use crate::channel::{Channel, Received};
use crate::message::{Message, request};
use crate::state::{REPLAY_REPLIES, State};
use crate::worker::Worker;

/// What the workers of one connection share: the record, and the numbers of the runs in it.
#[derive(Debug)]
pub(crate) struct Runs {
    record: File,
    /// The run of each queue, also of those that the device has not.
    numbers: Vec<u32>,
}

impl Runs {
    /// A record in which all queues are in their first run, which has not begun.
    pub(crate) fn new() -> io::Result<Self> {
        let mut runs = Self {
            record: Record::create()?,
            numbers: Vec::new(),
        };
        for queue in 0..u16::MAX {
            if Record::run_offset(queue).is_none() {
                break;
            }
            runs.numbers.push(0);
            runs.next(queue)?;
        }
        Ok(runs)
    }

    pub(crate) const fn record(&self) -> &File {
        &self.record
    }

    /// The next start of a queue begins another run.
    fn next(&mut self, queue: u16) -> io::Result<()> {
        let number = self.numbers.get_mut(usize::from(queue));
        if let (Some(number), Some(at)) = (number, Record::run_offset(queue)) {
            // 0 is no run.
            *number = number.checked_add(1).unwrap_or(1);
            self.record.write_all_at(&number.to_ne_bytes(), at)?;
        }
        Ok(())
    }
}

/// One connection of a monitor.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) monitor: Channel,
    pub(crate) back: Option<BackChannel>,
    state: State,
    /// A request that the monitor waits for the reply to.
    pending: Option<Message>,
}

impl Session {
    pub(crate) fn new(monitor: Channel) -> Self {
        Self {
            monitor,
            back: None,
            state: State::default(),
            pending: None,
        }
    }

    /// Whether the next message of the monitor can be forwarded.
    pub(crate) fn accepts(&self, worker: Option<&Worker>) -> bool {
        self.pending.is_none()
            && worker.is_some_and(|worker| worker.serves() && worker.channel.is_flushed())
    }

    /// Brings a new worker into the state of this connection.
    pub(crate) fn replay(&mut self, worker: &mut Worker) -> io::Result<()> {
        let back = self.back.as_mut().map(BackChannel::connect_worker);
        for message in self.state.replay(back.transpose()?) {
            worker.channel.send(message)?;
        }
        worker.replies_to_drop = REPLAY_REPLIES;
        Ok(())
    }

    /// The worker has handled the state. It gets the request again whose reply its predecessor
    /// owed.
    pub(crate) fn replayed(&mut self, worker: &mut Worker) -> io::Result<()> {
        let Some(message) = &self.pending else {
            return Ok(());
        };
        let mut message = message.clone();
        if message.request == request::SET_BACKEND_REQ_FD
            && let Some(back) = &mut self.back
        {
            message.files = back.connect_worker()?.files;
        }
        worker.channel.send(message)
    }

    /// The worker has ended.
    pub(crate) fn worker_ended(&mut self) {
        if let Some(back) = &mut self.back {
            back.disconnect_worker();
        }
    }

    /// The monitor's channel is readable. Returns whether it is still there.
    ///
    /// # Errors
    ///
    /// Where the monitor breaks the protocol. That the worker takes no message shows elsewhere.
    pub(crate) fn monitor_ready(&mut self, worker: &mut Worker) -> io::Result<bool> {
        while self.accepts(Some(worker)) {
            let mut message = match self.monitor.receive()? {
                Received::Nothing => return Ok(true),
                Received::End => return Ok(false),
                Received::Message(message) => message,
            };
            let has_reply = self.state.has_reply(&message);
            if message.request == request::SET_BACKEND_REQ_FD {
                message = self.open_back_channel(message)?;
            }
            match has_reply {
                true => self.pending = Some(message.clone()),
                false => {
                    self.state.remember(&message, None);
                }
            }
            if worker.channel.send(message).is_err() {
                worker.disconnected();
            }
        }
        Ok(true)
    }

    /// The monitor has opened its channel for requests of the device. Returns the message that
    /// opens the one of the worker.
    fn open_back_channel(&mut self, mut message: Message) -> io::Result<Message> {
        let file = message.files.pop();
        let file = file.and_then(std::rc::Rc::into_inner);
        let file = file.ok_or_else(|| io::Error::other("a channel without a descriptor"))?;
        let mut back = BackChannel::new(Channel::new(file)?);
        message.files = back.connect_worker()?.files;
        self.back = Some(back);
        Ok(message)
    }

    /// The worker has sent a message. Returns whether it may send such a message.
    ///
    /// # Errors
    ///
    /// Where the run of a queue cannot be recorded.
    pub(crate) fn worker_message(
        &mut self,
        message: Message,
        worker: &mut Worker,
        runs: &mut Runs,
    ) -> io::Result<bool> {
        if let Some(left) = worker.replies_to_drop.checked_sub(1) {
            worker.replies_to_drop = left;
            if left == 0 && self.replayed(worker).is_err() {
                worker.disconnected();
            }
            return Ok(message.is_reply());
        }
        let Some(pending) = self.pending.take() else {
            return Ok(false);
        };
        if !message.is_reply() || message.request != pending.request {
            self.pending = Some(pending);
            return Ok(false);
        }
        // Before the monitor gets the reply, and may start the queue again.
        if let Some(queue) = self.state.remember(&pending, Some(&message)) {
            runs.next(queue)?;
            if queue == 0
                && let Some(back) = &mut self.back
            {
                back.device_stopped();
            }
        }
        if let Err(error) = self.monitor.send(message) {
            // It has hung up, which shows in the next event.
            debug!(%error, "the monitor takes no reply");
        }
        Ok(true)
    }
}
