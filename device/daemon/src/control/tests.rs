// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::*;
use ringbar_model::DeviceOptions;
use ringbar_serve::signals::Termination;
use ringbar_storage::{MemoryStorage, Storage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

fn controlled() -> Controlled {
    with_termination().0
}

/// A device, and what is told of the end of its process.
fn with_termination() -> (Controlled, Termination) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(10_000).unwrap());
    let termination = Termination::catch().unwrap();
    let device = Device::new(storage, DeviceOptions::default(), &Threads::default());
    let controlled = Controlled {
        device: Arc::new(device.unwrap()),
        storage: "memory".to_owned(),
        transport: "vhost-user",
        socket: "/tmp/s".to_owned(),
        started: Instant::now(),
        ending: termination.ending(),
        supervisor: None,
    };
    (controlled, termination)
}

fn signalled(termination: &Termination) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(termination.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

/// A client that has closed the connection.
struct NoClient;

impl Write for NoClient {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The replies of `device` to these lines.
fn replies_to(device: &Controlled, lines: &[u8]) -> Vec<Value> {
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
    let device = controlled();
    let replies = replies_to(
        &device,
        b"{\"execute\": \"resize\", \"arguments\": {\"bytes\": 30000}}\n\n\
          {\"execute\": \"query-device\"}\n{\"execute\": \"query-statistics\"}",
    );
    assert_eq!(replies[0], json!({"return": {}}));
    let mut status = replies[1]["return"].clone();
    let uptime = status.as_object_mut().unwrap().remove("uptime-seconds");
    assert!(uptime.unwrap().is_u64());
    assert_eq!(
        status,
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "bytes": 30000,
            "io-queues": 4,
            "storage": "memory",
            "storage-failure": null,
            "transport": "vhost-user",
            "socket": "/tmp/s",
            "connected": false,
            // The tests have no log.
            "log": "",
        })
    );
    let statistics = &replies[2]["return"];
    assert_eq!(statistics["durable-writes"], 0);
    let queues = statistics["queues"].as_array().unwrap();
    let named: Vec<_> = queues
        .iter()
        .map(|queue| {
            (
                queue["queue"].as_u64().unwrap(),
                queue["role"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = ["control", "event", "io", "io", "io", "io"];
    assert_eq!(named, (0..).zip(expected).collect::<Vec<_>>());
    assert_eq!(replies.len(), 3);
    assert_eq!(device.device.storage().capacity(), 30_000);
}

#[test]
fn faults_are_added_listed_and_cleared() {
    let device = controlled();
    let ask = |request: Value| {
        let mut replies = replies_to(&device, format!("{request}\n").as_bytes());
        assert_eq!(replies.len(), 1);
        replies.remove(0)
    };
    let add = |rule: &str| ask(json!({"execute": "add-fault", "arguments": {"rule": rule}}));
    let list = || ask(json!({"execute": "query-faults"}));
    let clear = |arguments: Value| ask(json!({"execute": "clear-faults", "arguments": arguments}));
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
    assert!(!device.device.faults().is_active());
    let refused = add("reed:short")["error"]["desc"].to_string();
    assert!(refused.contains("is no rule"), "{refused}");
    assert!(refused.contains("Operations: read"), "{refused}");
    assert!(!device.device.faults().is_active());
}

#[test]
fn wrong_requests_are_refused_and_the_next_one_is_executed() {
    let device = controlled();
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
    let device = controlled();
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
    let number = format!("0.{}4305", "0".repeat(41));
    let line = format!("{{\"execute\": \"query-device\", \"id\": {number}}}\n");
    let replies = replies_to(&device, line.as_bytes());
    assert_eq!(replies[0]["id"], json!(4.305e-42));
}

#[test]
fn shutdown_is_answered_and_ends_the_process() {
    let (device, termination) = with_termination();
    let replies = replies_to(&device, b"{\"execute\": \"quit\"}\n");
    assert!(replies[0]["error"].is_object() && !signalled(&termination));
    // Nothing after it is executed.
    let lines = b"{\"execute\": \"shutdown\", \"id\": 7}\n{\"execute\": \"query-device\"}\n";
    assert_eq!(replies_to(&device, lines), [json!({"return": {}, "id": 7})]);
    assert!(signalled(&termination));
}

/// The supervisor has heard of the request before the reply.
#[test]
fn shutdown_ends_the_process_whose_client_does_not_wait() {
    let (device, termination) = with_termination();
    let line = &b"{\"execute\": \"query-device\"}\n"[..];
    let error = handle_requests(line, NoClient, &device).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert!(!signalled(&termination));
    let line = &b"{\"execute\": \"shutdown\"}\n"[..];
    let error = handle_requests(line, NoClient, &device).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert!(signalled(&termination));
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let device = controlled();
    for filter in ["", "debgu", "info,ringbar_engine", "=="] {
        let request = json!({"execute": "set-log", "arguments": {"filter": filter}});
        let replies = replies_to(&device, format!("{request}\n").as_bytes());
        let error = replies[0]["error"]["desc"].as_str().unwrap();
        assert!(error.contains("no log filter"), "{error}");
    }
}

#[test]
fn endless_requests_end_the_connection() {
    let replies = replies_to(&controlled(), &[b' '; 2 * MAX_REQUEST_BYTES as usize]);
    assert_eq!(replies.len(), 1);
    assert!(replies[0]["error"].is_object());
}

#[test]
fn only_the_owner_can_connect() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let control = ControlSocket::bind(&path).unwrap();
    let control = control.serve(controlled(), &Threads::default()).unwrap();
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
