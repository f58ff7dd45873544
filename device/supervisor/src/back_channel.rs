// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests of the device to the monitor, on the channel of `SET_BACKEND_REQ_FD`.
//!
//! Each worker has a channel of its own, and the monitor one for all of them. So the supervisor
//! has at most one request to the monitor at a time, and keeps what came of it:
//!
//! - the reply to a request of a worker that has ended goes to the next one, if that has asked
//!   for the same meanwhile;
//! - a worker that asks for a mapping that the monitor has already gets its reply at once.
//!   The monitor refuses to map the same again.
//!
//! The mapping ends when queue 0 stops, as the device takes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use rustix::event::PollFlags;
use tracing::warn;

use crate::channel::{Channel, Received};
use crate::message::{Message, device_request, request};

/// A request that the monitor has not replied to.
#[derive(Debug)]
struct Outstanding {
    request: u32,
    body: Vec<u8>,
    /// The worker of now waits for the reply.
    awaited: bool,
    /// The device was stopped meanwhile, so the mapping does not count.
    stale: bool,
}

impl Outstanding {
    fn is(&self, message: &Message) -> bool {
        self.request == message.request && self.body == message.body && !self.stale
    }
}

/// The two channels.
#[derive(Debug)]
pub(crate) struct BackChannel {
    monitor: Channel,
    worker: Option<Channel>,
    outstanding: Option<Outstanding>,
    /// A request that waits for the reply to the outstanding one.
    held: Option<Message>,
    /// The request for the mapping that the monitor has.
    mapped: Option<Vec<u8>>,
}

impl BackChannel {
    pub(crate) fn new(monitor: Channel) -> Self {
        Self {
            monitor,
            worker: None,
            outstanding: None,
            held: None,
            mapped: None,
        }
    }

    /// Opens the channel of a new worker. Returns the message that gives it to the worker.
    pub(crate) fn connect_worker(&mut self) -> io::Result<Message> {
        let (ours, theirs) = UnixStream::pair()?;
        self.worker = Some(Channel::new(ours)?);
        Ok(Message {
            files: vec![Rc::new(theirs.into())],
            ..Message::new(request::SET_BACKEND_REQ_FD)
        })
    }

    /// The worker has ended.
    pub(crate) fn disconnect_worker(&mut self) {
        self.worker = None;
        self.held = None;
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.awaited = false;
        }
    }

    /// Queue 0 has stopped.
    pub(crate) fn device_stopped(&mut self) {
        self.mapped = None;
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.stale = true;
        }
    }

    pub(crate) fn monitor(&self) -> (BorrowedFd<'_>, PollFlags) {
        (self.monitor.as_fd(), self.monitor.events(true))
    }

    pub(crate) fn worker(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let worker = self.worker.as_ref()?;
        Some((worker.as_fd(), worker.events(self.held.is_none())))
    }

    /// The channel of the worker is ready.
    ///
    /// # Errors
    ///
    /// Where the monitor cannot be reached.
    pub(crate) fn worker_ready(&mut self) -> io::Result<()> {
        while self.held.is_none() {
            let Some(worker) = &mut self.worker else {
                return Ok(());
            };
            match worker.flush().and_then(|()| worker.receive()) {
                Ok(Received::Nothing) => return Ok(()),
                Ok(Received::Message(message)) if !message.is_reply() => self.request(message)?,
                Ok(Received::Message(_) | Received::End) => self.disconnect_worker(),
                Err(error) => {
                    warn!(%error, "the worker's channel for requests to the monitor is broken");
                    self.disconnect_worker();
                }
            }
        }
        Ok(())
    }

    fn request(&mut self, message: Message) -> io::Result<()> {
        let is_mapped = message.request == device_request::SHMEM_MAP
            && self.mapped.as_ref() == Some(&message.body);
        if is_mapped {
            self.reply(Message::reply(message.request, 0));
            return Ok(());
        }
        match &mut self.outstanding {
            Some(outstanding) if outstanding.is(&message) => {
                outstanding.awaited = true;
                Ok(())
            }
            Some(_) => {
                self.held = Some(message);
                Ok(())
            }
            None => {
                if message.needs_reply() {
                    self.outstanding = Some(Outstanding {
                        request: message.request,
                        body: message.body.clone(),
                        awaited: true,
                        stale: false,
                    });
                }
                self.monitor.send(message)
            }
        }
    }

    fn reply(&mut self, reply: Message) {
        if let Some(worker) = &mut self.worker
            && let Err(error) = worker.send(reply)
        {
            warn!(%error, "the worker does not take a reply of the monitor");
            self.disconnect_worker();
        }
    }

    /// The channel of the monitor is ready. Returns whether it is still there.
    pub(crate) fn monitor_ready(&mut self) -> io::Result<bool> {
        self.monitor.flush()?;
        loop {
            let message = match self.monitor.receive()? {
                Received::Nothing => return Ok(true),
                Received::End => return Ok(false),
                Received::Message(message) => message,
            };
            let Some(outstanding) = self.outstanding.take() else {
                warn!("the monitor replies to nothing");
                continue;
            };
            if message.number() == Some(0) && !outstanding.stale {
                match outstanding.request {
                    device_request::SHMEM_MAP => self.mapped = Some(outstanding.body),
                    device_request::SHMEM_UNMAP => self.mapped = None,
                    _ => {}
                }
            }
            if outstanding.awaited {
                self.reply(message);
            }
            if let Some(held) = self.held.take() {
                self.request(held)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::device_request::{SHMEM_MAP, SHMEM_UNMAP};
    use super::*;

    struct Ends {
        back: BackChannel,
        monitor: Channel,
        worker: Channel,
    }

    impl Ends {
        fn new() -> Self {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut back = BackChannel::new(Channel::new(ours).unwrap());
            Self {
                monitor: Channel::new(theirs).unwrap(),
                worker: connect(&mut back),
                back,
            }
        }

        fn restart(&mut self) {
            self.back.disconnect_worker();
            self.worker = connect(&mut self.back);
        }

        /// The worker asks; returns what the monitor gets.
        fn ask(&mut self, request: u32, body: u8) -> Option<u8> {
            let message = Message::with_body(request, [body; 40]).with_need_reply();
            self.worker.send(message).unwrap();
            self.back.worker_ready().unwrap();
            take(&mut self.monitor).map(|message| message.body[0])
        }

        /// The monitor replies; returns what the worker gets.
        fn answer(&mut self, request: u32, value: u64) -> Option<u64> {
            self.monitor.send(Message::reply(request, value)).unwrap();
            assert!(self.back.monitor_ready().unwrap());
            self.replied()
        }

        fn replied(&mut self) -> Option<u64> {
            take(&mut self.worker).map(|message| message.number().unwrap())
        }
    }

    fn connect(back: &mut BackChannel) -> Channel {
        let mut message = back.connect_worker().unwrap();
        let file = Rc::into_inner(message.files.pop().unwrap()).unwrap();
        Channel::new(file).unwrap()
    }

    fn take(channel: &mut Channel) -> Option<Message> {
        match channel.receive().unwrap() {
            Received::Message(message) => Some(message),
            Received::Nothing => None,
            Received::End => panic!("the other side has hung up"),
        }
    }

    #[test]
    fn requests_and_replies_go_through() {
        let mut ends = Ends::new();
        assert_eq!(ends.ask(SHMEM_MAP, 1), Some(1));
        assert_eq!(ends.answer(SHMEM_MAP, 5), Some(5));
        // It was refused.
        assert_eq!(ends.ask(SHMEM_MAP, 1), Some(1));
    }

    #[test]
    fn what_is_mapped_is_not_mapped_again() {
        let mut ends = Ends::new();
        ends.ask(SHMEM_MAP, 1);
        assert_eq!(ends.answer(SHMEM_MAP, 0), Some(0));
        ends.restart();
        assert_eq!(ends.ask(SHMEM_MAP, 1), None);
        assert_eq!(ends.replied(), Some(0));
        // Another mapping is another one.
        assert_eq!(ends.ask(SHMEM_MAP, 2), Some(2));
        ends.answer(SHMEM_MAP, 0);
        assert_eq!(ends.ask(SHMEM_UNMAP, 2), Some(2));
        ends.answer(SHMEM_UNMAP, 0);
        assert_eq!(ends.ask(SHMEM_MAP, 2), Some(2));
        ends.answer(SHMEM_MAP, 0);
        ends.back.device_stopped();
        assert_eq!(ends.ask(SHMEM_MAP, 2), Some(2));
    }

    #[test]
    fn a_reply_goes_to_the_next_worker() {
        let mut ends = Ends::new();
        ends.ask(SHMEM_MAP, 1);
        ends.restart();
        assert_eq!(ends.ask(SHMEM_MAP, 1), None);
        assert_eq!(ends.answer(SHMEM_MAP, 0), Some(0));
        // And to none where nobody waits.
        ends.ask(SHMEM_MAP, 2);
        ends.restart();
        assert_eq!(ends.answer(SHMEM_MAP, 0), None);
        assert_eq!(ends.ask(SHMEM_MAP, 2), None);
        assert_eq!(ends.replied(), Some(0));
    }

    #[test]
    fn another_request_waits_for_the_reply() {
        let mut ends = Ends::new();
        ends.ask(SHMEM_MAP, 1);
        ends.back.device_stopped();
        ends.restart();
        assert_eq!(ends.ask(SHMEM_MAP, 1), None);
        assert_eq!(ends.answer(SHMEM_MAP, 0), None);
        assert_eq!(take(&mut ends.monitor).unwrap().body[0], 1);
        assert_eq!(ends.answer(SHMEM_MAP, 0), Some(0));
    }
}
