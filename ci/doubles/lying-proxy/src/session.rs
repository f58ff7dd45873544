// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One connection between a monitor and the device, through the proxy.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::host::{Lie, LieQueue, UsedLie};
use ringbar_spec::{EVENT_QUEUE, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::memory::{MAX_QUEUES, Memory};
use crate::message::{Message, invalid, request};
use crate::queue::{Queue, Used, clear};
use crate::used::{self, descriptor};
use crate::{Command, Shared};

/// Feature bit `VIRTIO_RING_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;

/// Bits of the value of `SET_VRING_KICK` and `SET_VRING_CALL`: the queue, and the flag
/// for a message without a descriptor.
const QUEUE_MASK: u64 = 0xff;
const NO_FILE: u64 = 1 << 8;

/// Length of offset, size and flags before the bytes of `GET_CONFIG`.
const CONFIG_HEADER: usize = 12;

/// Reason for the end of a session.
pub(crate) enum SessionEnd {
    /// One side has hung up.
    HungUp,
    /// The proxy was told to end.
    Requested,
}

/// Bytes that replace a part of the configuration space.
struct ConfigPatch {
    offset: usize,
    bytes: Vec<u8>,
}

/// The pending lies.
#[derive(Default)]
struct Lies {
    used: VecDeque<(LieQueue, UsedLie)>,
    events: VecDeque<[u8; Event::SIZE]>,
    flood: Option<(u32, [u8; Event::SIZE])>,
    storm: Option<Instant>,
    config: Vec<ConfigPatch>,
    slow_stop: Option<Duration>,
}

impl Lies {
    fn add(&mut self, lie: Lie) {
        match lie {
            Lie::Used(queues, lie) => self.used.push_back((queues, lie)),
            Lie::Event(bytes) => self.events.push_back(bytes),
            Lie::EventFlood(count, bytes) => self.flood = Some((count, bytes)),
            Lie::InterruptStorm(ms) => {
                self.storm = Some(Instant::now() + Duration::from_millis(ms.into()));
            }
            Lie::Config {
                offset,
                length,
                bytes,
            } => self.config.push(ConfigPatch {
                offset: offset.into(),
                bytes: bytes[..usize::from(length).min(bytes.len())].to_vec(),
            }),
            Lie::SlowStop(ms) => self.slow_stop = Some(Duration::from_millis(ms.into())),
        }
    }

    /// The next lie for a used entry of `queue`.
    fn take_used(&mut self, queue: &Queue) -> Option<UsedLie> {
        let at = self
            .used
            .iter()
            .position(|(queues, _)| queue.is_in(*queues))?;
        self.used.remove(at).map(|(_, lie)| lie)
    }

    /// Whether a lie is pending that needs no event of either side.
    fn are_unsolicited(&self) -> bool {
        self.storm.is_some() || self.flood.is_some()
    }
}

/// The two connections and the state between them.
pub(crate) struct Session<'a> {
    monitor: UnixStream,
    device: UnixStream,
    memory: Memory,
    queues: Vec<Queue>,
    /// The queue that the monitor has asked the device to stop.
    stopping: Option<usize>,
    lies: Lies,
    shared: &'a Shared,
    commands: &'a Receiver<(Command, Sender<()>)>,
}

impl<'a> Session<'a> {
    /// Waits for the monitor and connects to the device; `None` if the proxy is told to
    /// end before.
    pub(crate) fn accept(
        listener: &UnixListener,
        device: &Path,
        shared: &'a Shared,
        commands: &'a Receiver<(Command, Sender<()>)>,
    ) -> io::Result<Option<Self>> {
        let mut lies = Lies::default();
        loop {
            let mut fds = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(&shared.wake, PollFlags::IN),
            ];
            wait(&mut fds, false)?;
            let ready = !fds[0].revents().is_empty();
            if run_commands(&mut lies, shared, commands)? {
                return Ok(None);
            }
            if ready {
                break;
            }
        }
        let (monitor, _) = listener.accept()?;
        Ok(Some(Self {
            monitor,
            device: UnixStream::connect(device)?,
            memory: Memory::new()?,
            queues: (0..MAX_QUEUES).map(Queue::new).collect::<io::Result<_>>()?,
            stopping: None,
            lies,
            shared,
            commands,
        }))
    }

    /// Forwards until one side hangs up.
    pub(crate) fn run(&mut self) -> io::Result<SessionEnd> {
        loop {
            let (monitor, device) = self.wait()?;
            if run_commands(&mut self.lies, self.shared, self.commands)? {
                return Ok(SessionEnd::Requested);
            }
            if monitor {
                let Some(message) = Message::receive(&self.monitor)? else {
                    return Ok(SessionEnd::HungUp);
                };
                self.forward_to_device(message)?;
            }
            if device {
                let Some(message) = Message::receive(&self.device)? else {
                    return Ok(SessionEnd::HungUp);
                };
                self.forward_to_monitor(message)?;
            }
            for index in 0..self.queues.len() {
                self.queues[index].forward_available(&self.memory)?;
                self.forward_used(index)?;
            }
            self.inject_events()?;
            self.inject_interrupts()?;
        }
    }

    /// Waits for an event, unless a lie is due at once. Returns whether the monitor and
    /// the device have sent messages.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut fds = vec![
            PollFd::new(&self.monitor, PollFlags::IN),
            PollFd::new(&self.device, PollFlags::IN),
            PollFd::new(&self.shared.wake, PollFlags::IN),
        ];
        let mut counters = Vec::new();
        for queue in &self.queues {
            if queue.rings.is_some() {
                counters.extend(queue.kick.iter().chain([&queue.device_call]));
            }
        }
        fds.extend(
            counters
                .iter()
                .map(|counter| PollFd::new(*counter, PollFlags::IN)),
        );
        wait(&mut fds, self.lies.are_unsolicited())?;
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (counter, _) in counters
            .iter()
            .zip(&ready[3..])
            .filter(|(_, ready)| **ready)
        {
            clear(counter)?;
        }
        Ok((ready[0], ready[1]))
    }

    fn queue(&mut self, index: u64) -> io::Result<&mut Queue> {
        self.queues
            .get_mut(index as usize)
            .ok_or_else(|| invalid(format!("queue {index}")))
    }

    /// Interprets a message of the monitor, changes it, and forwards it.
    fn forward_to_device(&mut self, mut message: Message) -> io::Result<()> {
        match message.request {
            request::SET_FEATURES => {
                let event_idx = message.long(0)? & EVENT_IDX != 0;
                for queue in &mut self.queues {
                    queue.set_event_idx(event_idx);
                }
            }
            request::SET_MEM_TABLE => self.memory.update(&mut message)?,
            request::SET_VRING_NUM => {
                let size = message.word(4)?;
                self.queue(message.word(0)?.into())?.set_size(size)?;
            }
            request::SET_VRING_BASE => {
                let base = message.word(4)?;
                self.queue(message.word(0)?.into())?.set_base(base);
            }
            request::SET_VRING_ADDR => {
                let index = u64::from(message.word(0)?);
                let [descriptors, used, avail] = [8, 16, 24].map(|at| {
                    let user = message.long(at)?;
                    self.memory.to_guest(user)
                });
                let (descriptors, avail, used) = (descriptors?, avail?, used?);
                let queue = self
                    .queues
                    .get_mut(index as usize)
                    .ok_or_else(|| invalid(format!("queue {index}")))?;
                let (avail, used) = queue.start(&self.memory, descriptors, avail, used)?;
                message.set_long(16, used)?;
                message.set_long(24, avail)?;
            }
            request::SET_VRING_KICK | request::SET_VRING_CALL => {
                let value = message.long(0)?;
                if value & NO_FILE == 0
                    && let Some(file) = message.files.pop()
                {
                    let is_kick = message.request == request::SET_VRING_KICK;
                    let queue = self.queue(value & QUEUE_MASK)?;
                    let file = match is_kick {
                        true => queue.set_kick(file)?,
                        false => queue.set_call(file)?,
                    };
                    message.files.push(file);
                }
            }
            request::GET_VRING_BASE => {
                self.stopping = Some(message.word(0)? as usize);
                if let Some(delay) = self.lies.slow_stop.take() {
                    self.count_lie();
                    // The delay is the lie. The monitor waits for this message only.
                    thread::sleep(delay);
                }
            }
            _ => {}
        }
        message.send(&self.device)
    }

    fn forward_to_monitor(&mut self, mut message: Message) -> io::Result<()> {
        match message.request {
            request::GET_VRING_BASE => {
                // Forward the entries that the device used before it stopped.
                if let Some(index) = self.stopping.take() {
                    self.forward_used(index)?;
                    self.queue(index as u64)?.stop();
                    if index == usize::from(EVENT_QUEUE) {
                        self.lies.flood = None;
                    }
                }
            }
            request::GET_CONFIG => {
                let first = message.word(0)? as usize;
                for patch in &self.lies.config {
                    for (at, byte) in (patch.offset..).zip(&patch.bytes) {
                        if let Some(place) = at
                            .checked_sub(first)
                            .and_then(|at| message.body.get_mut(CONFIG_HEADER + at))
                        {
                            *place = *byte;
                        }
                    }
                }
                if !self.lies.config.is_empty() {
                    self.count_lie();
                }
            }
            _ => {}
        }
        message.send(&self.monitor)
    }

    /// Forwards used entries to the guest, true or falsified.
    fn forward_used(&mut self, index: usize) -> io::Result<()> {
        let Some(queue) = self.queues.get_mut(index) else {
            return Ok(());
        };
        for used in queue.take_used(&self.memory)? {
            if queue.rings.as_ref().is_none_or(|rings| rings.broken) {
                continue;
            }
            match self.lies.take_used(queue) {
                Some(lie) => {
                    used::inject(lie, queue, &self.memory, used)?;
                    self.shared.lies_told.fetch_add(1, Ordering::Release);
                }
                None => queue.put_used(&self.memory, used, 0)?,
            }
        }
        queue.notify_guest(&self.memory)
    }

    /// Sends made-up events, as far as there are buffers that the device does not have.
    fn inject_events(&mut self) -> io::Result<()> {
        let Some(queue) = self.queues.get_mut(usize::from(EVENT_QUEUE)) else {
            return Ok(());
        };
        queue.take_available(&self.memory)?;
        while let Some(rings) = &mut queue.rings {
            if rings.broken {
                break;
            }
            let about_events = |(queues, _): &(LieQueue, _)| *queues == LieQueue::Event;
            let lie = self.lies.used.iter().position(about_events);
            let bytes = match (lie, self.lies.events.front(), &self.lies.flood) {
                // A valid event with a false used entry.
                (Some(_), _, _) => [0; Event::SIZE],
                (None, Some(bytes), _) | (None, None, Some((_, bytes))) => *bytes,
                (None, None, None) => break,
            };
            let Some(head) = rings.undelivered.pop_front() else {
                break;
            };
            let (buffer, ..) = descriptor(&self.memory, rings.descriptors + 16 * u64::from(head))?;
            for (i, byte) in (0..).zip(bytes) {
                self.memory.write(buffer + i, byte)?;
            }
            let used = Used {
                id: head.into(),
                len: Event::SIZE as u32,
            };
            match lie.and_then(|at| self.lies.used.remove(at)) {
                Some((_, lie)) => used::inject(lie, queue, &self.memory, used)?,
                None => {
                    queue.put_used(&self.memory, used, 0)?;
                    if self.lies.events.pop_front().is_none() {
                        self.lies.flood = match self.lies.flood.take() {
                            Some((count @ 2.., bytes)) => Some((count - 1, bytes)),
                            _ => None,
                        };
                    }
                }
            }
            self.shared.lies_told.fetch_add(1, Ordering::Release);
        }
        queue.notify_guest(&self.memory)
    }

    /// Interrupts the guest without a cause.
    fn inject_interrupts(&mut self) -> io::Result<()> {
        let Some(end) = self.lies.storm else {
            return Ok(());
        };
        if Instant::now() >= end {
            self.lies.storm = None;
        }
        self.count_lie();
        let first = |queue: &&Queue| queue.is_in(LieQueue::Io) && queue.rings.is_some();
        match self.queues.iter().find(first) {
            Some(queue) => queue.interrupt(),
            None => Ok(()),
        }
    }

    fn count_lie(&self) {
        self.shared.lies_told.fetch_add(1, Ordering::Release);
    }
}

/// Executes the pending commands; returns whether the proxy is to end.
fn run_commands(
    lies: &mut Lies,
    shared: &Shared,
    commands: &Receiver<(Command, Sender<()>)>,
) -> io::Result<bool> {
    clear(&shared.wake)?;
    for (command, done) in commands.try_iter() {
        match command {
            Command::Lie(lie) => lies.add(lie),
            Command::EndLies => *lies = Lies::default(),
            Command::End => return Ok(true),
        }
        // The sender may have stopped waiting.
        let _ = done.send(());
    }
    Ok(false)
}

/// Waits until a descriptor is ready; returns at once if `urgent`.
fn wait(fds: &mut [PollFd<'_>], urgent: bool) -> io::Result<()> {
    const NOT: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(fds, urgent.then_some(&NOT)) {
            Err(Errno::INTR) => {}
            other => return other.map(drop).map_err(Into::into),
        }
    }
}
