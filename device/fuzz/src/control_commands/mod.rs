// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a client may send to the control socket: lines of any length, in any pieces, with commands
//! of all kinds, and what is nearly one.
//!
//! The model reads a line as JSON and knows the commands, the size of the device and its rules for
//! faults. The device writes one reply to each line, in their order, with the `id` of the request.
//! It does what the model does, and nothing after the request to end or a line that is too long.
//! The client of `ringbarctl` can read each reply.

mod lines;

use std::io::{BufReader, Read};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arbitrary::{Arbitrary, Unstructured};
use ringbar_control::MAX_REQUEST_BYTES;
use ringbar_control::reply::{AddedFault, Cleared, Done, Fault, Statistics, Status};
use ringbar_control::wire::{ReplyRead, parse_reply};
use ringbar_device::control::{Controlled, handle_requests};
use ringbar_engine::Threads;
use ringbar_faults::{Rule, set::MAX_RULES};
use ringbar_model::{Device, DeviceOptions};
use ringbar_serve::signals::Termination;
use ringbar_storage::{MemoryStorage, Storage};
use rustix::net::{RecvFlags, recv};
use serde_json::{Map, Value};

use self::lines::Line;

/// Size of a new device in bytes.
const CAPACITY: u64 = 5000;

/// A device can always have this size. There may be no memory for a greater one.
const POSSIBLE: u64 = 1 << 20;

/// Greatest number of lines of an input.
const MAX_LINES: usize = 80;

/// What all runs have in common, because its signal handlers last as long as the process.
static TERMINATION: LazyLock<Termination> =
    LazyLock::new(|| Termination::catch().expect("signals can be caught"));

/// Bytes that come in pieces of a size.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.size.min(buffer.len());
        self.bytes.read(&mut buffer[..length])
    }
}

/// A request, as the model reads it.
#[derive(Debug)]
enum Request<'a> {
    QueryDevice,
    QueryStatistics,
    Resize(u64),
    AddFault(&'a str),
    QueryFaults,
    ClearFaults(Option<u64>),
    SetLog,
    Shutdown,
}

impl<'a> Request<'a> {
    fn of(object: &'a Map<String, Value>, none: &'a Map<String, Value>) -> Option<Self> {
        let arguments = match object.get("arguments") {
            None => none,
            Some(arguments) => arguments.as_object()?,
        };
        // Nothing beside what the command has.
        let known = ["execute", "arguments", "id"];
        if !object.keys().all(|name| known.contains(&name.as_str())) {
            return None;
        }
        let name = object.get("execute")?.as_str()?;
        let argument = match name {
            "resize" => "bytes",
            "add-fault" => "rule",
            "clear-faults" => "id",
            "set-log" => "filter",
            _ => "",
        };
        if !arguments.keys().all(|name| name == argument) {
            return None;
        }
        let value = arguments.get(argument).filter(|_| !argument.is_empty());
        if argument.is_empty() && !arguments.is_empty() {
            return None;
        }
        Some(match name {
            "query-device" => Self::QueryDevice,
            "query-statistics" => Self::QueryStatistics,
            "resize" => Self::Resize(value?.as_u64()?),
            "add-fault" => Self::AddFault(value?.as_str()?),
            "query-faults" => Self::QueryFaults,
            "clear-faults" => Self::ClearFaults(match value {
                None | Some(Value::Null) => None,
                Some(id) => Some(id.as_u64()?),
            }),
            "set-log" => value?.as_str().map(|_| Self::SetLog)?,
            "shutdown" => Self::Shutdown,
            _ => return None,
        })
    }
}

struct Model {
    capacity: u64,
    /// Numbers and texts of the rules.
    rules: Vec<(u64, String)>,
    last_rule: u64,
    has_ended: bool,
}

/// What the client reads of a reply, of which `None` is a refusal.
fn read<T: serde::de::DeserializeOwned>(reply: &[u8]) -> Option<T> {
    match parse_reply(reply).expect("a reply to this command") {
        ReplyRead::Returned(value) => Some(value),
        ReplyRead::Refused(description) => {
            assert!(!description.is_empty());
            None
        }
    }
}

impl Model {
    /// Compares the reply to a line with that of the model.
    fn compare(&mut self, line: &[u8], reply: &[u8]) {
        let value: Value = serde_json::from_slice(reply).expect("a reply is JSON");
        let object = serde_json::from_slice::<Map<String, Value>>(line).ok();
        let id = object.as_ref().and_then(|object| object.get("id"));
        assert_eq!(value.get("id"), id);
        let results = ["return", "error"].map(|name| usize::from(value.get(name).is_some()));
        assert_eq!(results.iter().sum::<usize>(), 1, "{value}");
        let members = value.as_object().map(Map::len);
        assert_eq!(members, Some(1 + usize::from(id.is_some())), "{value}");
        let none = Map::new();
        let request = object.as_ref().and_then(|it| Request::of(it, &none));
        match request {
            Some(request) => self.execute(&request, reply),
            None => assert_eq!(read::<Value>(reply), None),
        }
    }

    fn execute(&mut self, request: &Request<'_>, reply: &[u8]) {
        match *request {
            Request::QueryDevice => {
                let status: Status = read(reply).expect("a status");
                assert_eq!(status.bytes, self.capacity);
                assert_eq!(status.storage_failure, None);
            }
            Request::QueryStatistics => {
                let statistics: Statistics = read(reply).expect("statistics");
                assert_eq!(statistics.queues.len(), 6);
                assert_eq!(statistics.total.requests, 0);
            }
            Request::Resize(bytes) => match read::<Done>(reply) {
                Some(_) => {
                    assert!(bytes > 0 && bytes <= i64::MAX as u64);
                    self.capacity = bytes;
                }
                None => assert!(bytes == 0 || bytes > POSSIBLE),
            },
            Request::AddFault(rule) => {
                let added = read::<AddedFault>(reply).map(|added| added.id);
                let rule = rule.parse::<Rule>().ok();
                let rule = rule.filter(|_| self.rules.len() < MAX_RULES);
                assert_eq!(added, rule.as_ref().map(|_| self.last_rule + 1));
                if let Some(rule) = rule {
                    self.last_rule += 1;
                    self.rules.push((self.last_rule, rule.to_string()));
                }
            }
            Request::QueryFaults => {
                let faults: Vec<Fault> = read(reply).expect("a list");
                let faults = faults.into_iter().map(|fault| {
                    assert_eq!((fault.matches, fault.firings), (0, 0));
                    (fault.id, fault.rule)
                });
                assert_eq!(faults.collect::<Vec<_>>(), self.rules);
            }
            Request::ClearFaults(id) => {
                let before = self.rules.len();
                self.rules
                    .retain(|(rule, _)| id.is_some_and(|id| id != *rule));
                let cleared = (before - self.rules.len()) as u64;
                let expected = (id.is_none() || cleared > 0).then_some(cleared);
                let found = read::<Cleared>(reply).map(|cleared| cleared.cleared);
                assert_eq!(found, expected);
            }
            // This process has no log.
            Request::SetLog => assert_eq!(read::<Done>(reply), None),
            Request::Shutdown => {
                assert_eq!(read(reply), Some(Done {}));
                self.has_ended = true;
            }
        }
    }
}

/// The first request of the bytes, `None` where it is too long.
fn first_line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let length = end.map_or(bytes.len(), |at| at + 1);
    // With the line feed that it should have.
    let whole = end.map_or(bytes.len() + 1, |at| at + 1);
    (whole as u64 <= MAX_REQUEST_BYTES).then_some(&bytes[..length])
}

fn controlled() -> Controlled {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(CAPACITY).expect("memory"));
    let device = Device::new(storage, DeviceOptions::default(), &Threads::default());
    Controlled {
        device: Arc::new(device.expect("a device")),
        storage: "memory".to_owned(),
        transport: "vhost-user",
        socket: "/run/device".to_owned(),
        started: Instant::now(),
        ending: TERMINATION.ending(),
        supervisor: None,
    }
}

/// Runs an input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let size = input.arbitrary::<u8>().unwrap_or_default();
    let mut bytes = Vec::new();
    for _ in 0..MAX_LINES {
        match Line::arbitrary(&mut input) {
            Ok(line) if !input.is_empty() => bytes.extend(line.bytes()),
            _ => break,
        }
    }
    let controlled = controlled();
    let mut written = Vec::new();
    let pieces = Pieces {
        bytes: &bytes,
        size: usize::from(size) + 1,
    };
    handle_requests(BufReader::new(pieces), &mut written, &controlled).expect("nothing fails");

    let mut model = Model {
        capacity: CAPACITY,
        rules: Vec::new(),
        last_rule: 0,
        has_ended: false,
    };
    let mut replies = written.split_inclusive(|byte| *byte == b'\n');
    let mut reply = || {
        let reply = replies.next();
        reply.filter(|reply| reply.ends_with(b"\n"))
    };
    let mut rest = &bytes[..];
    while !rest.is_empty() && !model.has_ended {
        let Some(line) = first_line(rest) else {
            // The start of the next request is unknown.
            assert_eq!(read::<Value>(reply().expect("a reply")), None);
            break;
        };
        rest = &rest[line.len()..];
        if !line.trim_ascii().is_empty() {
            model.compare(line, reply().expect("a reply to each request"));
        }
    }
    assert_eq!(reply(), None);
    assert_eq!(controlled.device.storage().capacity(), model.capacity);
    assert_eq!(controlled.device.faults().list().len(), model.rules.len());
    let asked = recv(&*TERMINATION, &mut [0; 8], RecvFlags::DONTWAIT);
    assert_eq!(
        asked.map_or(0, |(count, _)| count),
        usize::from(model.has_ended)
    );
}
