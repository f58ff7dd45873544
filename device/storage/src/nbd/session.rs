// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transmission phase of an NBD client as a state machine: operations in, bytes out; bytes
//! in, ended operations out. Knows no sockets.
//!
//! ```text
//!          header                data of a write       reply             data of a read
//!  queued ────────► partly sent ────────────────► sent ──────► receiving ──────────────► ended
//!                        │                                       ▲
//!                        └── reply before all data were sent ────┘ ends once they were
//! ```
//!
//! A request's cookie is its slot and how often the slot was used, so a reply that comes twice,
//! or to nothing, is recognised. The server may be anything: what it sends never changes other
//! memory than that of a read that waits for it, and a violation of the protocol ends the
//! session, because nobody knows where the next reply begins.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use rustix::fs::FallocateFlags;

use super::handshake::Export;
use super::wire::{
    CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, ESHUTDOWN, REPLY_BYTES,
    REQUEST_BYTES, Reply, Request, errno,
};
use crate::disk::ring::{Action, Io};

/// Most requests that the server has at once.
pub(super) const DEPTH: usize = 1024;

/// Bytes that are received before it is known what they are.
const STAGING: usize = 64 << 10;

/// Most pieces of memory that are sent at once.
const MAX_PIECES: usize = 64;

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the server's reply has a wrong magic number")]
    Magic,
    #[error("the server's reply is to a request that it does not have")]
    Cookie,
    #[error("the server is shutting down")]
    Shutdown,
}

impl From<SessionError> for io::Error {
    fn from(error: SessionError) -> Self {
        let kind = match error {
            SessionError::Magic | SessionError::Cookie => io::ErrorKind::InvalidData,
            SessionError::Shutdown => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// A request that the server has, or will have.
struct Pending {
    io: Io,
    header: [u8; REQUEST_BYTES],
    /// Bytes of data of a read or write.
    data: usize,
    /// All of it was sent.
    sent: bool,
    /// The result, of a write whose data were not all sent when the reply came.
    answer: Option<i32>,
}

impl Pending {
    /// What follows the header.
    fn payload(&self) -> &[u8] {
        let (bytes, start) = match &self.io.action {
            Action::Write { memory, part, .. } => (memory.bytes(), part.start),
            Action::WriteZeros { memory, part, .. } => (memory.bytes(), part.start),
            Action::Read { .. } | Action::Allocate { .. } | Action::Sync => return &[],
        };
        &bytes[start..][..self.data]
    }

    /// Where the data of a reply go, from byte `at` of them on.
    fn target(&mut self, at: usize) -> &mut [u8] {
        match &mut self.io.action {
            Action::Read { memory, part, .. } => {
                let start = part.start;
                &mut memory.bytes_mut()[start..][at..self.data]
            }
            _ => &mut [],
        }
    }

    const fn reads(&self) -> bool {
        matches!(self.io.action, Action::Read { .. })
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    pending: Option<Pending>,
}

/// A read whose data are being received.
#[derive(Clone, Copy)]
struct Receiving {
    slot: usize,
    /// Bytes that are there.
    done: usize,
}

/// The requests of a connection.
pub(super) struct Session {
    export: Export,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots whose requests are not all sent, and how many bytes of the first one are.
    unsent: VecDeque<usize>,
    sent_of_first: usize,
    receiving: Option<Receiving>,
    staging: Box<[u8]>,
    staged: Range<usize>,
    /// What ended without the server.
    ended: Vec<(Io, i32)>,
}

impl Session {
    pub(super) fn new(export: Export) -> Self {
        Self {
            export,
            slots: Vec::new(),
            free: Vec::new(),
            unsent: VecDeque::new(),
            sent_of_first: 0,
            receiving: None,
            staging: vec![0; STAGING].into(),
            staged: 0..0,
            ended: Vec::new(),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes an operation, or returns it where the server has as many as it may.
    pub(super) fn push(&mut self, io: Io) -> Result<(), Io> {
        let unsupported = match io.action {
            Action::Allocate { .. } if !self.export.writes_zeroes => Some(-libc::EOPNOTSUPP),
            // There is nothing that could be asked for. `NbdStorage::open` has warned.
            Action::Sync if !self.export.flushes => Some(0),
            _ => None,
        };
        if let Some(result) = unsupported {
            self.ended.push((io, result));
            return Ok(());
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < DEPTH => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => return Err(io),
        };
        self.request(slot, io);
        Ok(())
    }

    /// Appends what has ended without the server.
    pub(super) fn take_ended(&mut self, ended: &mut Vec<(Io, i32)>) {
        ended.append(&mut self.ended);
    }

    /// Queues the request of an operation in a slot that is free.
    fn request(&mut self, slot: usize, io: Io) {
        let limit = |length: usize| length.min(self.export.maximum as usize) as u32;
        let (command, flags, offset, length) = match &io.action {
            Action::Read { at, part, .. } => (CMD_READ, 0, *at, limit(part.len())),
            Action::Write { at, part, .. } | Action::WriteZeros { at, part, .. } => {
                (CMD_WRITE, 0, *at, limit(part.len()))
            }
            Action::Allocate { mode, at, length } => {
                let holes = mode.contains(FallocateFlags::PUNCH_HOLE);
                let flags = if holes { 0 } else { CMD_FLAG_NO_HOLE };
                let length = limit(usize::try_from(*length).unwrap_or(usize::MAX));
                (CMD_WRITE_ZEROES, flags, *at, length)
            }
            Action::Sync => (CMD_FLUSH, 0, 0, 0),
        };
        let place = &mut self.slots[slot];
        let header = Request {
            flags,
            command,
            cookie: u64::from(place.generation) << 32 | slot as u64,
            offset,
            length,
        };
        place.pending = Some(Pending {
            data: match command {
                CMD_READ | CMD_WRITE => length as usize,
                _ => 0,
            },
            io,
            header: header.encode(),
            sent: false,
            answer: None,
        });
        self.unsent.push_back(slot);
    }

    /// What is to be sent next, in pieces; none where there is nothing.
    pub(super) fn output(&self) -> impl Iterator<Item = &[u8]> {
        let pieces = self.unsent.iter().flat_map(|slot| {
            let pending = self.slots[*slot].pending.as_ref();
            pending.map_or([&[][..]; 2], |pending| [&pending.header, pending.payload()])
        });
        let mut skipped = self.sent_of_first;
        let rest = pieces.map(move |piece| {
            let skip = skipped.min(piece.len());
            skipped -= skip;
            &piece[skip..]
        });
        rest.filter(|piece| !piece.is_empty()).take(MAX_PIECES)
    }

    /// This many bytes of [`Self::output`] were sent.
    pub(super) fn sent(&mut self, mut count: usize) {
        while let Some(&slot) = self.unsent.front() {
            let Some(pending) = &mut self.slots[slot].pending else {
                return;
            };
            let left = REQUEST_BYTES + pending.payload().len() - self.sent_of_first;
            if count < left {
                self.sent_of_first += count;
                return;
            }
            count -= left;
            self.sent_of_first = 0;
            pending.sent = true;
            let answer = pending.answer;
            self.unsent.pop_front();
            if let Some(result) = answer {
                self.end(slot, result);
            }
            if count == 0 {
                return;
            }
        }
    }

    /// Where the next bytes of the server go: the first memory, and what it has no room for to
    /// the second. The second one is never empty.
    pub(super) fn input(&mut self) -> [&mut [u8]; 2] {
        // Less than the header of a reply.
        self.staging.copy_within(self.staged.clone(), 0);
        self.staged = 0..self.staged.len();
        let target: &mut [u8] = match self.receiving {
            Some(Receiving { slot, done }) => self.slots[slot]
                .pending
                .as_mut()
                .map_or(&mut [], |pending| pending.target(done)),
            None => &mut [],
        };
        [target, &mut self.staging[self.staged.end..]]
    }

    /// This many bytes were received in [`Self::input`]. Appends the operations that have
    /// ended, each with its result as [`crate::disk::ring::Ring::turn`] has it.
    ///
    /// # Errors
    ///
    /// Where the server has violated the protocol, or is shutting down. The session is of no use any
    /// more.
    pub(super) fn received(
        &mut self,
        count: usize,
        ended: &mut Vec<(Io, i32)>,
    ) -> Result<(), SessionError> {
        let direct = self.receive(count);
        self.staged.end += count - direct;
        let parsed = self.parse();
        ended.append(&mut self.ended);
        parsed
    }

    /// Takes note of up to `count` bytes of data of the read that is being received. Returns how
    /// many there are.
    fn receive(&mut self, count: usize) -> usize {
        let Some(Receiving { slot, done }) = self.receiving else {
            return 0;
        };
        let data = self.slots[slot].pending.as_ref().map_or(0, |io| io.data);
        let step = count.min(data - done);
        self.receiving = Some(Receiving {
            slot,
            done: done + step,
        });
        if done + step == data {
            self.receiving = None;
            // Fits: at most the maximum of the export.
            self.end(slot, data as i32);
        }
        step
    }

    /// Takes apart what is staged.
    fn parse(&mut self) -> Result<(), SessionError> {
        loop {
            if let Some(Receiving { slot, done }) = self.receiving {
                let staged = &self.staging[self.staged.clone()];
                if let Some(pending) = &mut self.slots[slot].pending {
                    let target = pending.target(done);
                    let count = target.len().min(staged.len());
                    target[..count].copy_from_slice(&staged[..count]);
                }
                self.staged.start += self.receive(self.staged.len());
                if self.receiving.is_some() {
                    return Ok(());
                }
            }
            let staged = &self.staging[self.staged.clone()];
            let Some((header, _)) = staged.split_first_chunk::<REPLY_BYTES>() else {
                return Ok(());
            };
            let reply = Reply::parse(*header).ok_or(SessionError::Magic)?;
            self.staged.start += REPLY_BYTES;
            self.reply(reply)?;
        }
    }

    fn reply(&mut self, reply: Reply) -> Result<(), SessionError> {
        let (generation, slot) = ((reply.cookie >> 32) as u32, reply.cookie as u32 as usize);
        let is_first = self.unsent.front() == Some(&slot);
        let place = self.slots.get_mut(slot).ok_or(SessionError::Cookie)?;
        let pending = match &mut place.pending {
            Some(pending) if place.generation == generation => pending,
            _ => return Err(SessionError::Cookie),
        };
        let result = match reply.error {
            0 => pending.data as i32,
            // It will answer all others so, a flush of what it has too.
            ESHUTDOWN => return Err(SessionError::Shutdown),
            error => -errno(error),
        };
        let has_header = is_first && self.sent_of_first >= REQUEST_BYTES;
        match (pending.sent, pending.answer) {
            (true, _) if pending.reads() && reply.error == 0 => {
                self.receiving = Some(Receiving { slot, done: 0 });
            }
            (true, _) => self.end(slot, result),
            (false, None) if has_header => pending.answer = Some(result),
            (false, _) => return Err(SessionError::Cookie),
        }
        Ok(())
    }

    /// A request has ended.
    fn end(&mut self, slot: usize, result: i32) {
        let place = &mut self.slots[slot];
        let Some(Pending { mut io, header, .. }) = place.pending.take() else {
            return;
        };
        place.generation = place.generation.wrapping_add(1);
        if let (Action::Allocate { at, length, .. }, 0) = (&mut io.action, result) {
            let [.., a, b, c, d] = header;
            let step = u64::from(u32::from_be_bytes([a, b, c, d]));
            *at += step;
            *length -= step;
            if *length > 0 {
                return self.request(slot, io);
            }
        }
        self.free.push(slot);
        self.ended.push((io, result));
    }
}
