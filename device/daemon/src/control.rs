// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Control of a running device over a Unix socket.
//!
//! Requests and replies are lines with one JSON object each, in the syntax of the QEMU Machine
//! Protocol (without its greeting and negotiation):
//!
//! | request | reply |
//! |---|---|
//! | `{"execute": "resize", "arguments": {"bytes": N}}` | `{"return": {}}` once the device has that size and the event for the driver is pending |
//! | `{"execute": "query-device"}` | `{"return": {"bytes": N, "io-queues": N, "storage-failure": null}}`; for a storage that has failed permanently, the reason in place of `null` |
//! | `{"execute": "query-statistics"}` | `{"return": {"requests": N, ...}}`, see [`ringbar_model::Counts`] |
//! | `{"execute": "add-fault", "arguments": {"rule": "read:nth=3:error=EIO"}}` | `{"return": {"id": N}}`: requests that the driver submits from now on are compared with the rule (`docs/faults.md`) |
//! | `{"execute": "query-faults"}` | `{"return": [{"id": N, "rule": "...", "matches": N, "firings": N}, ...]}` |
//! | `{"execute": "clear-faults", "arguments": {"id": N}}` | `{"return": {"cleared": 1}}`; without `id`, all rules are cleared |
//! | anything else | `{"error": {"desc": "..."}}` |
//!
//! As in that protocol, a request may omit `"arguments": {}`, and the reply to a request with an
//! `id`, which may be any value, has the same `id`.
//!
//! A process that can open the socket can send all requests, so only the owner can open it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use ringbar_faults::{Rule, RuleId};
use ringbar_model::Device;
use ringbar_serve::socket::{self, SocketFile};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::{debug, info, warn};

/// Greatest length of a request in bytes, far more than a valid one has.
const MAX_LINE: u64 = 4096;

/// Greatest number of connections at a time, each of which has a thread.
const MAX_CONNECTIONS: usize = 16;

/// Permission bits of the socket's file.
const OWNER_ONLY: u32 = 0o600;

/// Delay before another attempt after an `accept` that failed.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(500);

/// A request.
#[derive(Debug, Deserialize)]
#[serde(
    tag = "execute",
    content = "arguments",
    rename_all = "kebab-case",
    deny_unknown_fields
)]
enum Request {
    Resize { bytes: u64 },
    QueryDevice {},
    QueryStatistics {},
    AddFault { rule: String },
    QueryFaults {},
    ClearFaults { id: Option<RuleId> },
}

/// The control socket. Dropping it removes its file; connections last until the process ends.
#[derive(Debug)]
pub struct Control {
    _file: SocketFile,
}

impl Control {
    /// Creates the socket at `path`, and starts a thread that accepts connections.
    pub fn listen(path: &Path, device: Arc<Device>) -> anyhow::Result<Self> {
        let (listener, file) = bind(path)?;
        accept(listener, device)?;
        Ok(Self { _file: file })
    }
}

/// Creates the socket at `path`, and its file.
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    socket::bind(path, OWNER_ONLY)
}

/// Starts a thread that accepts connections.
pub fn accept(listener: UnixListener, device: Arc<Device>) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || accept_all(&listener, &device))
        .context("cannot start a thread")?;
    Ok(())
}

fn accept_all(listener: &UnixListener, device: &Arc<Device>) {
    // Its reference count is the number of connections plus 1.
    let connections = Arc::new(());
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // Usually the process has no free descriptors; the connection stays pending.
                warn!(%error, "cannot accept a connection to the control socket now");
                thread::sleep(ACCEPT_RETRY_DELAY);
                continue;
            }
        };
        if Arc::strong_count(&connections) > MAX_CONNECTIONS {
            let error = error_reply("too many connections to the control socket");
            // A failure means that the client has disconnected already.
            let _ = send_reply(&stream, &error);
            continue;
        }
        let (device, connection) = (Arc::clone(device), Arc::clone(&connections));
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let _connection = connection;
                if let Err(error) = handle_connection(&stream, &device) {
                    debug!(%error, "control connection ended");
                }
            });
        if let Err(error) = thread {
            warn!(%error, "cannot start a thread for a control connection");
        }
    }
}

/// Handles requests until the client disconnects.
fn handle_connection(stream: &UnixStream, device: &Device) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(());
        }
        if line.len() as u64 == MAX_LINE && line.last() != Some(&b'\n') {
            // The start of the next request is unknown.
            let error = error_reply(&format!("a request has at most {MAX_LINE} bytes"));
            return send_reply(stream, &error);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        send_reply(stream, &handle_line(&line, device))?;
    }
}

fn send_reply(mut stream: &UnixStream, reply: &Value) -> io::Result<()> {
    stream.write_all(format!("{reply}\n").as_bytes())
}

fn error_reply(description: &str) -> Value {
    json!({"error": {"desc": description}})
}

/// Executes the request in a line and returns the reply.
fn handle_line(line: &[u8], device: &Device) -> Value {
    let syntax_error = |error| error_reply(&format!("this is no request: {error}"));
    let mut object: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(object) => object,
        Err(error) => return syntax_error(error),
    };
    let id = object.remove("id");
    let arguments = object.entry("arguments").or_insert_with(|| json!({}));
    let mut reply = if arguments.is_object() {
        match serde_json::from_value(Value::Object(object)) {
            Ok(request) => execute(&request, device),
            Err(error) => syntax_error(error),
        }
    } else {
        error_reply("the arguments of a request are an object")
    };
    if let Some(id) = id {
        reply["id"] = id;
    }
    reply
}

fn execute(request: &Request, device: &Device) -> Value {
    let value = match request {
        Request::Resize { bytes } => match device.resize(*bytes) {
            Ok(()) => {
                info!(bytes, "device memory resized");
                json!({})
            }
            Err(error) => return error_reply(&format!("{:#}", anyhow::Error::new(error))),
        },
        Request::QueryDevice {} => {
            let config = device.config();
            json!({
                "bytes": config.capacity(),
                "io-queues": config.io_queues(),
                "storage-failure": device.storage().failure(),
            })
        }
        Request::QueryStatistics {} => json!(device.counts()),
        Request::AddFault { rule } => match add_fault(rule, device) {
            Ok(id) => json!({"id": id}),
            Err(error) => return error_reply(&error),
        },
        Request::QueryFaults {} => query_faults(device),
        Request::ClearFaults { id } => {
            let cleared = match id {
                None => device.faults().clear_all(),
                Some(id) => match device.faults().clear(*id) {
                    Ok(()) => 1,
                    Err(error) => return error_reply(&error.to_string()),
                },
            };
            info!(cleared, "rules for faults cleared");
            json!({"cleared": cleared})
        }
    };
    json!({"return": value})
}

/// Adds a rule. The error is a message for the client.
fn add_fault(rule: &str, device: &Device) -> Result<RuleId, String> {
    let rule: Rule = rule
        .parse()
        .map_err(|error| format!("\"{rule}\" is no rule: {error}"))?;
    let text = rule.to_string();
    let id = device.faults().add(rule).map_err(|e| e.to_string())?;
    info!(id, rule = text, "faults are injected");
    Ok(id)
}

fn query_faults(device: &Device) -> Value {
    let listed = device.faults().list().into_iter();
    listed
        .map(|listed| {
            json!({
                "id": listed.id,
                "rule": listed.rule.to_string(),
                "matches": listed.matches,
                "firings": listed.firings,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbar_model::DeviceOptions;
    use ringbar_storage::{MemoryStorage, Storage};
    use std::os::unix::fs::PermissionsExt;

    fn device() -> Arc<Device> {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(10_000).unwrap());
        Arc::new(Device::new(storage, DeviceOptions::default()).unwrap())
    }

    /// The replies of `device` to these lines.
    fn replies_to(device: &Device, lines: &[u8]) -> Vec<Value> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(lines).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        handle_connection(&theirs, device).unwrap();
        drop(theirs);
        serde_json::Deserializer::from_reader(&ours)
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn resize_changes_the_queried_size() {
        let device = device();
        let replies = replies_to(
            &device,
            b"{\"execute\": \"resize\", \"arguments\": {\"bytes\": 30000}}\n\n\
              {\"execute\": \"query-device\"}\n{\"execute\": \"query-statistics\"}",
        );
        assert_eq!(replies[0], json!({"return": {}}));
        assert_eq!(
            replies[1],
            json!({"return": {"bytes": 30000, "io-queues": 4, "storage-failure": null}})
        );
        assert_eq!(replies[2]["return"]["durable-writes"], 0);
        assert_eq!(replies.len(), 3);
        assert_eq!(device.storage().capacity(), 30_000);
    }

    #[test]
    fn faults_are_added_listed_and_cleared() {
        let device = device();
        let ask = |request: Value| {
            let mut replies = replies_to(&device, format!("{request}\n").as_bytes());
            assert_eq!(replies.len(), 1);
            replies.remove(0)
        };
        let add = |rule: &str| ask(json!({"execute": "add-fault", "arguments": {"rule": rule}}));
        let list = || ask(json!({"execute": "query-faults"}));
        let clear =
            |arguments: Value| ask(json!({"execute": "clear-faults", "arguments": arguments}));
        assert_eq!(list(), json!({"return": []}));
        assert_eq!(add("nth=3:read:error=EIO"), json!({"return": {"id": 1}}));
        assert_eq!(add("latency=2ms"), json!({"return": {"id": 2}}));
        let second = json!({"id": 2, "rule": "latency=2ms", "matches": 0, "firings": 0});
        let first = json!({"id": 1, "rule": "read:nth=3:error=EIO", "matches": 0, "firings": 0});
        assert_eq!(list(), json!({"return": [first, second]}));
        assert_eq!(clear(json!({"id": 1})), json!({"return": {"cleared": 1}}));
        assert_eq!(list(), json!({"return": [second]}));
        assert_eq!(
            clear(json!({"id": 1}))["error"]["desc"],
            "there is no rule 1: query-faults lists those that there are"
        );
        assert_eq!(add("short")["return"]["id"], 3);
        assert_eq!(clear(json!({})), json!({"return": {"cleared": 2}}));
        assert!(!device.faults().is_active());
        let refused = add("reed:short")["error"]["desc"].to_string();
        assert!(refused.contains("is no rule"), "{refused}");
        assert!(refused.contains("Operations: read"), "{refused}");
        assert!(!device.faults().is_active());
    }

    #[test]
    fn wrong_requests_are_refused_and_the_next_one_is_executed() {
        let device = device();
        for line in [
            &b"resize"[..],
            b"\xff\xfe",
            b"{\"execute\": \"quit\"}",
            b"{\"execute\": \"resize\"}",
            b"{\"execute\": \"resize\", \"arguments\": {\"bytes\": -1}}",
            b"{\"execute\": \"resize\", \"arguments\": {\"bytes\": 5, \"size\": 6}}",
            b"{\"execute\": \"resize\", \"arguments\": {\"bytes\": 0}}",
            b"{\"execute\": \"resize\", \"arguments\": [4096]}",
            b"{\"execute\": \"resize\", \"arguments\": {\"bytes\": 4096}, \"size\": 1}",
            b"{\"execute\": \"query-device\", \"arguments\": {\"bytes\": 4096}}",
            b"{\"execute\": \"query-device\", \"arguments\": null}",
            b"{\"arguments\": {}}",
            b"[]",
            b"{\"execute\": \"resize\", \"arguments\": {\"bytes\": 9223372036854775808}}",
        ] {
            let mut lines = line.to_vec();
            lines.extend(b"\n{\"execute\": \"query-device\"}\n");
            let replies = replies_to(&device, &lines);
            assert!(replies[0]["error"]["desc"].is_string(), "{replies:?}");
            assert_eq!(replies[1]["return"]["bytes"], 10_000, "{replies:?}");
            assert_eq!(replies.len(), 2);
        }
    }

    #[test]
    fn empty_arguments_and_an_id_are_taken_as_qmp_takes_them() {
        let device = device();
        for id in [json!(7), json!("a"), json!(null), json!({"x": [1]})] {
            for request in [
                json!({"execute": "query-device", "id": id}),
                json!({"execute": "query-device", "arguments": {}, "id": id}),
                json!({"id": id, "execute": "query-statistics", "arguments": {}}),
                json!({"id": id, "execute": "resize", "arguments": {"bytes": 10_000}}),
            ] {
                let replies = replies_to(&device, format!("{request}\n").as_bytes());
                assert!(replies[0]["return"].is_object(), "{request}: {replies:?}");
                assert_eq!(replies[0].get("id"), Some(&id));
            }
            // Error replies have the id as well.
            let request = json!({"execute": "quit", "id": id});
            let replies = replies_to(&device, format!("{request}\n").as_bytes());
            assert!(replies[0]["error"].is_object());
            assert_eq!(replies[0].get("id"), Some(&id));
        }
        let replies = replies_to(&device, b"{\"execute\": \"query-device\"}\n");
        assert_eq!(replies[0].get("id"), None);
    }

    #[test]
    fn endless_requests_end_the_connection() {
        let replies = replies_to(&device(), &[b' '; 2 * MAX_LINE as usize]);
        assert_eq!(replies.len(), 1);
        assert!(replies[0]["error"].is_object());
    }

    #[test]
    fn only_the_owner_can_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let control = Control::listen(&path, device()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream
            .write_all(b"{\"execute\": \"query-device\"}\n")
            .unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("10000"), "{line}");
        drop(control);
        assert!(!path.exists());
    }
}
