// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transmission phase without a socket: bytes arrive in any pieces, and replies in any order.

use proptest::prelude::*;
use rustix::fs::FallocateFlags;

use super::super::handshake::Export;
use super::super::session::{DEPTH, Session, SessionError};
use super::super::wire::{
    CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, REQUEST_BYTES, Reply,
    Request,
};
use crate::aligned::Memory;
use crate::disk::ring::{Action, Io, Stage};

const SIZE: usize = 4096;
/// Most bytes of a request.
const MAXIMUM: usize = 300;

const EXPORT: Export = Export {
    size: SIZE as u64,
    minimum: 1,
    maximum: MAXIMUM as u32,
    flushes: true,
    writes_zeroes: true,
};

/// A session, and a server that answers when and how the test says.
struct Machine {
    session: Session,
    /// Bytes on their way to the server.
    to_server: Vec<u8>,
    requests: Vec<(Request, Vec<u8>)>,
    /// Bytes on their way to the client.
    to_client: Vec<u8>,
    ended: Vec<(Io, i32)>,
}

impl Machine {
    fn new() -> Self {
        Self {
            session: Session::new(EXPORT),
            to_server: Vec::new(),
            requests: Vec::new(),
            to_client: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn push(&mut self, operation: u64, action: Action) {
        let stage = Stage::Main;
        let io = Io {
            operation,
            stage,
            action,
        };
        self.session.push(io).unwrap();
        self.session.take_ended(&mut self.ended);
    }

    /// Sends up to `limit` bytes.
    fn send(&mut self, limit: usize) {
        let output: Vec<_> = self
            .session
            .output()
            .flatten()
            .copied()
            .take(limit)
            .collect();
        self.session.sent(output.len());
        self.session.take_ended(&mut self.ended);
        self.to_server.extend(output);
        while let Some((header, rest)) = self.to_server.split_first_chunk::<REQUEST_BYTES>() {
            let request = Request::parse(*header);
            let data = match request.command {
                CMD_WRITE => request.length as usize,
                _ => 0,
            };
            if rest.len() < data {
                return;
            }
            let data = rest[..data].to_vec();
            self.to_server.drain(..REQUEST_BYTES + data.len());
            self.requests.push((request, data));
        }
    }

    fn send_all(&mut self) {
        while self.session.output().next().is_some() {
            self.send(usize::MAX);
        }
    }

    fn reply(&mut self, error: u32, cookie: u64, data: &[u8]) {
        self.to_client.extend(Reply { error, cookie }.encode());
        self.to_client.extend(data);
    }

    /// Receives up to `limit` bytes.
    fn receive(&mut self, limit: usize) -> Result<(), SessionError> {
        let [first, second] = self.session.input();
        let count = self
            .to_client
            .len()
            .min(limit)
            .min(first.len() + second.len());
        let (bytes, rest) = self.to_client.split_at(count);
        let split = count.min(first.len());
        first[..split].copy_from_slice(&bytes[..split]);
        second[..count - split].copy_from_slice(&bytes[split..]);
        self.to_client = rest.to_vec();
        self.session.received(count, &mut self.ended)
    }

    fn receive_all(&mut self) -> Result<(), SessionError> {
        while !self.to_client.is_empty() {
            self.receive(usize::MAX)?;
        }
        Ok(())
    }

    /// The operations that have ended since, with their results.
    fn ended(&mut self) -> Vec<(u64, i32)> {
        let ended = self.ended.drain(..);
        ended.map(|(io, result)| (io.operation, result)).collect()
    }
}

fn read(at: u64, length: usize) -> Action {
    let memory = Memory::zeroed(length + 7, 1);
    let part = 7..7 + length;
    Action::Read { at, memory, part }
}

fn write(at: u64, length: usize, fill: u8) -> Action {
    let mut memory = Memory::zeroed(length + 7, 1);
    memory.bytes_mut()[7..].fill(fill);
    let part = 7..7 + length;
    Action::Write { at, memory, part }
}

fn zeroes(mode: FallocateFlags, at: u64, length: u64) -> Action {
    let mode = mode | FallocateFlags::KEEP_SIZE;
    Action::Allocate { mode, at, length }
}

#[test]
fn operations_are_commands() {
    let mut machine = Machine::new();
    machine.push(0, read(1, 2));
    machine.push(1, write(3, 4, 5));
    machine.push(2, zeroes(FallocateFlags::PUNCH_HOLE, 6, 7));
    machine.push(3, zeroes(FallocateFlags::ZERO_RANGE, 8, 9));
    machine.push(4, Action::Sync);
    machine.send_all();
    let seen: Vec<_> = machine
        .requests
        .iter()
        .map(|(request, data)| {
            let Request {
                flags,
                command,
                offset,
                length,
                ..
            } = *request;
            (command, flags, offset, length, &data[..])
        })
        .collect();
    let expected = [
        (CMD_READ, 0, 1, 2, &[][..]),
        (CMD_WRITE, 0, 3, 4, &[5; 4][..]),
        (CMD_WRITE_ZEROES, 0, 6, 7, &[][..]),
        (CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 8, 9, &[][..]),
        (CMD_FLUSH, 0, 0, 0, &[][..]),
    ];
    assert_eq!(seen, expected);
}

/// What a server does not offer is not asked for.
#[test]
fn a_server_without_flush_and_zeroes() {
    let mut machine = Machine::new();
    machine.session = Session::new(Export {
        flushes: false,
        writes_zeroes: false,
        ..EXPORT
    });
    machine.push(0, Action::Sync);
    machine.push(1, zeroes(FallocateFlags::PUNCH_HOLE, 0, 7));
    assert_eq!(machine.ended(), [(0, 0), (1, -libc::EOPNOTSUPP)]);
    assert!(machine.session.output().next().is_none());
    assert_eq!(machine.session.in_flight(), 0);
}

#[test]
fn no_more_in_flight_than_there_are_slots() {
    let mut machine = Machine::new();
    for number in 0..DEPTH as u64 {
        machine.push(number, read(0, 1));
    }
    let (operation, stage, action) = (0, Stage::Main, read(0, 1));
    let io = Io {
        operation,
        stage,
        action,
    };
    let io = machine.session.push(io).unwrap_err();
    machine.send_all();
    let cookie = machine.requests[77].0.cookie;
    machine.reply(0, cookie, &[9]);
    machine.receive_all().unwrap();
    assert_eq!(machine.ended(), [(77, 1)]);
    machine.session.push(io).unwrap();
}

#[test]
fn replies_that_lie_end_the_session() {
    // What the server does once it has a read and a write.
    type Server = fn(&mut Machine, [u64; 2]);
    let lies: [(Server, bool, &str); 6] = [
        (
            |machine, _| machine.to_client.extend([0x66; 16]),
            true,
            "magic",
        ),
        // A structured reply, which was not agreed on.
        (
            |machine, _| machine.to_client.extend([0x66, 0x8e, 0x33, 0xef].repeat(5)),
            true,
            "magic",
        ),
        (
            |machine, _| machine.reply(0, DEPTH as u64, &[]),
            true,
            "slot",
        ),
        (
            |machine, [read, _]| machine.reply(5, read | 1 << 32, &[]),
            true,
            "generation",
        ),
        (
            |machine, [_, write]| {
                machine.reply(0, write, &[]);
                machine.reply(0, write, &[]);
            },
            true,
            "twice",
        ),
        (
            |machine, [read, _]| machine.reply(0, read, &[1, 2]),
            false,
            "the truth",
        ),
    ];
    for (server, is_lie, name) in lies {
        let mut machine = Machine::new();
        machine.push(0, read(0, 2));
        machine.push(1, write(0, 2, 1));
        machine.send_all();
        let cookies = [0, 1].map(|index| machine.requests[index].0.cookie);
        server(&mut machine, cookies);
        assert_eq!(machine.receive_all().is_err(), is_lie, "{name}");
    }
}

/// The reply to a request that has ended is not one to the next request in its slot.
#[test]
fn a_late_second_reply_is_no_reply_to_another_request() {
    let mut machine = Machine::new();
    machine.push(0, write(0, 2, 1));
    machine.send_all();
    let (first, _) = machine.requests[0];
    machine.reply(0, first.cookie, &[]);
    machine.receive_all().unwrap();
    assert_eq!(machine.ended(), [(0, 2)]);
    machine.push(1, write(0, 2, 1));
    machine.send_all();
    let (second, _) = machine.requests[1];
    assert_eq!(first.cookie as u32, second.cookie as u32, "another slot");
    machine.reply(0, first.cookie, &[]);
    assert!(machine.receive_all().is_err());
    assert_eq!(machine.ended(), []);
}

/// A server can answer a write before it has all data, and nothing that it cannot know of.
#[test]
fn replies_before_all_was_sent() {
    let mut machine = Machine::new();
    machine.push(0, write(0, 100, 1));
    machine.push(1, read(0, 2));
    let header: Vec<_> = machine.session.output().next().unwrap().to_vec();
    let cookie = Request::parse(header.try_into().unwrap()).cookie;
    machine.send(REQUEST_BYTES + 10);
    machine.reply(28, cookie, &[]);
    machine.receive_all().unwrap();
    // The kernel may still read its memory.
    assert_eq!(machine.ended(), []);
    machine.send(89);
    assert_eq!(machine.ended(), []);
    machine.send(1);
    assert_eq!(machine.ended(), [(0, -libc::ENOSPC)]);

    for sent in [0, 1, REQUEST_BYTES - 1] {
        let mut machine = Machine::new();
        machine.push(0, write(0, 100, 1));
        machine.send(sent);
        machine.reply(0, 0, &[]);
        assert!(machine.receive_all().is_err(), "after {sent} bytes");
    }
    // Twice is a lie here, too.
    let mut machine = Machine::new();
    machine.push(0, write(0, 100, 1));
    machine.send(REQUEST_BYTES);
    machine.reply(0, 0, &[]);
    machine.reply(0, 0, &[]);
    assert!(machine.receive_all().is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, usize, u8),
    Zero(u64, u64),
    Flush,
    Send(usize),
    Answer(prop::sample::Index, u32),
    Receive(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = 0..SIZE as u64 / 2;
    let length = 1..2 * MAXIMUM;
    let count = prop_oneof![1..40usize, 1..2000usize];
    let error = prop_oneof![4 => Just(0u32), 1 => any::<u32>(), 1 => Just(28u32)];
    prop_oneof![
        (offset.clone(), length.clone()).prop_map(|(at, length)| Step::Read(at, length)),
        (offset.clone(), length, 1..255u8)
            .prop_map(|(at, length, fill)| Step::Write(at, length, fill)),
        (offset, 1..SIZE as u64 / 2).prop_map(|(at, length)| Step::Zero(at, length)),
        Just(Step::Flush),
        count.clone().prop_map(Step::Send),
        (any::<prop::sample::Index>(), error).prop_map(|(index, error)| Step::Answer(index, error)),
        count.prop_map(Step::Receive),
    ]
}

/// A server that executes its requests on a disk in any order.
struct Server {
    machine: Machine,
    disk: Vec<u8>,
    pushed: u64,
    ended: Vec<u64>,
}

impl Server {
    /// Executes one of the requests, or fails it.
    fn answer(&mut self, index: usize, error: u32) {
        let (request, data) = self.machine.requests.remove(index);
        let at = request.offset as usize;
        assert!(request.length as usize <= MAXIMUM);
        let range = at..at + request.length as usize;
        let mut reply = Vec::new();
        if error == 0 {
            match request.command {
                CMD_READ => reply = self.disk[range].to_vec(),
                CMD_WRITE => self.disk[range].copy_from_slice(&data),
                CMD_WRITE_ZEROES => self.disk[range].fill(0),
                _ => {}
            }
        }
        self.machine.reply(error, request.cookie, &reply);
    }

    fn check(&mut self) {
        for (io, result) in self.machine.ended.drain(..) {
            assert!(!self.ended.contains(&io.operation), "ended twice");
            self.ended.push(io.operation);
            match (&io.action, result) {
                (Action::Allocate { length, .. }, 0) => assert_eq!(*length, 0),
                (Action::Read { part, .. } | Action::Write { part, .. }, 0..) => {
                    assert_eq!(result as usize, part.len().min(MAXIMUM));
                }
                (Action::Sync, _) => assert!(result <= 0),
                _ => assert!(result < 0),
            }
            if let Action::Read { memory, part, .. } = &io.action {
                let bytes = memory.bytes();
                // Nothing beside it.
                assert_eq!(bytes[..part.start], [0; 7]);
                let end = part.start + result.max(0) as usize;
                assert!(bytes[end..].iter().all(|byte| *byte == 0));
            }
        }
    }
}

proptest! {
    #[test]
    fn bytes_in_any_pieces_and_replies_in_any_order(steps in prop::collection::vec(step(), 1..200)) {
        let mut server = Server {
            machine: Machine::new(),
            disk: vec![0xee; SIZE],
            pushed: 0,
            ended: Vec::new(),
        };
        for step in steps {
            let mut push = |action| {
                server.machine.push(server.pushed, action);
                server.pushed += 1;
            };
            match step {
                Step::Read(at, length) => push(read(at, length)),
                Step::Write(at, length, fill) => push(write(at, length, fill)),
                Step::Zero(at, length) => push(zeroes(FallocateFlags::PUNCH_HOLE, at, length)),
                Step::Flush => push(Action::Sync),
                Step::Send(count) => server.machine.send(count),
                Step::Answer(index, error) if !server.machine.requests.is_empty() => {
                    let index = index.index(server.machine.requests.len());
                    server.answer(index, error);
                }
                Step::Answer(..) => {}
                Step::Receive(count) => server.machine.receive(count).unwrap(),
            }
            server.check();
        }
        while server.machine.session.in_flight() > 0 {
            server.machine.send_all();
            while !server.machine.requests.is_empty() {
                server.answer(0, 0);
            }
            server.machine.receive_all().unwrap();
            server.check();
        }
        prop_assert_eq!(server.ended.len() as u64, server.pushed);
    }

    /// What is written is what a later read brings, whatever the pieces are.
    #[test]
    fn data_come_back(at in 0..1000u64, length in 1..MAXIMUM, piece in 1..400usize) {
        let mut server = Server {
            machine: Machine::new(),
            disk: vec![0; SIZE],
            pushed: 0,
            ended: Vec::new(),
        };
        for action in [write(at, length, 7), read(at, length)] {
            server.machine.push(0, action);
            while server.machine.requests.is_empty() {
                server.machine.send(piece);
            }
            server.answer(0, 0);
            while server.machine.ended.is_empty() {
                server.machine.receive(piece).unwrap();
            }
            let (io, result) = server.machine.ended.remove(0);
            prop_assert_eq!(result as usize, length);
            if let Action::Read { memory, .. } = io.action {
                prop_assert!(memory.bytes()[7..].iter().all(|byte| *byte == 7));
            }
        }
    }

    /// Any bytes of a server do no harm: nothing ends twice.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), replies in 0..4u64) {
        let mut machine = Machine::new();
        for number in 0..4 {
            machine.push(number, read(number, 5));
        }
        machine.send_all();
        for cookie in 0..replies {
            machine.reply(0, cookie, &[1; 5]);
        }
        machine.to_client.extend(bytes);
        let _ = machine.receive_all();
        let mut ended: Vec<_> = machine.ended().into_iter().map(|(number, _)| number).collect();
        let count = ended.len();
        ended.sort_unstable();
        ended.dedup();
        prop_assert_eq!(ended.len(), count);
        prop_assert!(count >= replies as usize);
    }
}
