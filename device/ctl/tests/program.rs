// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The program, with a device that replies as the test says.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};

use ringbar_control::command::{
    self, AddFault, ClearFaults, QueryDevice, QueryFaults, QueryStatistics, Resize, SetLog,
    Shutdown,
};
use ringbar_control::reply::{AddedFault, Cleared, Counts, Done, Fault, QueueRole};
use ringbar_control::wire::{Reply, Request};
use ringbar_control::{QueueStatistics, Statistics, Status};
use tempfile::TempDir;

/// A device that replies to requests one after the other, on one connection.
struct Device {
    _directory: TempDir,
    socket: PathBuf,
    /// The commands that it got.
    thread: JoinHandle<Vec<command::Command>>,
}

impl Device {
    fn start(replies: Vec<Reply>) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream).split(b'\n');
            let answer = |reply: Reply| {
                let line = lines.next()?.unwrap();
                (&stream).write_all(reply.to_line().as_bytes()).unwrap();
                Some(Request::parse(&line).command.unwrap())
            };
            replies.into_iter().map_while(answer).collect()
        });
        Self {
            _directory: directory,
            socket,
            thread,
        }
    }

    /// Runs the program. Returns its output with the commands that the device got.
    fn ctl(self, args: &[&str]) -> (Output, Vec<command::Command>) {
        let output = ctl(&self.socket, args);
        // Where the program has not connected, the device waits for no other.
        let _ = UnixStream::connect(&self.socket);
        (output, self.thread.join().unwrap())
    }
}

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringbarctl"));
    program.env_remove("RINGBAR_CONTROL_SOCKET");
    program
}

fn ctl(socket: &Path, args: &[&str]) -> Output {
    let mut program = program();
    program.env("RINGBAR_CONTROL_SOCKET", socket);
    program.args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The exit status, and the first line of the message.
fn failure(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code().unwrap(), message)
}

fn status() -> Status {
    Status {
        version: "1.2.3".into(),
        pid: 4711,
        uptime_seconds: 61,
        bytes: 1 << 28,
        io_queues: 4,
        storage: "file:/disk".into(),
        storage_failure: None,
        transport: "vhost-user".into(),
        socket: "/run/s".into(),
        connected: true,
        log: "info".into(),
    }
}

fn statistics(reads: u64) -> Statistics {
    let counts = Counts {
        requests: reads,
        reads,
        bytes_read: reads << 20,
        ..Counts::default()
    };
    let queue = |queue, role, counts| QueueStatistics {
        queue,
        role,
        in_flight: 0,
        counts,
        latencies: vec![],
    };
    Statistics {
        total: counts,
        queues: vec![
            queue(0, QueueRole::Control, Counts::default()),
            queue(2, QueueRole::Io, counts),
        ],
    }
}

#[test]
fn status_is_text_or_json() {
    let device = Device::start(vec![Reply::returned::<QueryDevice>(&status())]);
    let (output, commands) = device.ctl(&["status"]);
    assert_eq!(commands, [QueryDevice {}.into()]);
    let expected = "\
version     1.2.3
process     4711, for 61 s
memory      268435456 bytes (256 MiB)
storage     file:/disk
I/O queues  4
transport   vhost-user
monitor     connected, /run/s
log         info
";
    assert_eq!(stdout(&output), expected);

    let device = Device::start(vec![Reply::returned::<QueryDevice>(&status())]);
    let (output, _) = device.ctl(&["--json", "status"]);
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1);
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status());
}

#[test]
fn commands_are_sent_as_they_are_given() {
    let added = AddedFault { id: 7 };
    let cleared = Cleared { cleared: 2 };
    let done = Done {};
    for (args, reply, command, text) in [
        (
            &["fault", "add", "short"][..],
            Reply::returned::<AddFault>(&added),
            AddFault {
                rule: "short".into(),
            }
            .into(),
            "Rule 7 is in effect.\n",
        ),
        (
            &["fault", "clear", "7"],
            Reply::returned::<ClearFaults>(&Cleared { cleared: 1 }),
            ClearFaults { id: Some(7) }.into(),
            "1 rule was cleared.\n",
        ),
        (
            &["fault", "clear", "--all"],
            Reply::returned::<ClearFaults>(&cleared),
            ClearFaults { id: None }.into(),
            "2 rules were cleared.\n",
        ),
        (
            &["resize", "512M"],
            Reply::returned::<Resize>(&done),
            Resize { bytes: 512 << 20 }.into(),
            "The device memory has 536870912 bytes (512 MiB).\n",
        ),
        (
            &["log", "debug"],
            Reply::returned::<SetLog>(&done),
            SetLog {
                filter: "debug".into(),
            }
            .into(),
            "",
        ),
        (
            &["shutdown"],
            Reply::returned::<Shutdown>(&done),
            Shutdown {}.into(),
            "",
        ),
    ] {
        let (output, commands) = Device::start(vec![reply]).ctl(args);
        assert_eq!(stdout(&output), text);
        assert_eq!(commands, [command]);
    }
}

#[test]
fn rules_are_listed_with_their_counters() {
    let rule = |id, rule: &str, matches| Fault {
        id,
        rule: rule.into(),
        matches,
        firings: 1,
    };
    let faults = vec![rule(1, "read:nth=3:error=EIO", 5), rule(12, "short", 123)];
    let device = Device::start(vec![Reply::returned::<QueryFaults>(&faults)]);
    let expected = "\
ID  RULE                  MATCHES  FIRINGS
 1  read:nth=3:error=EIO        5        1
12  short                     123        1
";
    assert_eq!(stdout(&device.ctl(&["fault", "list"]).0), expected);
}

#[test]
fn statistics_are_of_one_queue_or_of_all() {
    let reply = || vec![Reply::returned::<QueryStatistics>(&statistics(3))];
    let text = stdout(&Device::start(reply()).ctl(&["stats"]).0);
    assert_eq!(text.lines().count(), 6, "{text}");
    let text = stdout(&Device::start(reply()).ctl(&["stats", "--queue", "2"]).0);
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("3.0 MiB"), "{text}");
    let (output, _) = Device::start(reply()).ctl(&["stats", "--queue", "9"]);
    let (code, message) = failure(&output);
    assert_eq!(code, 1);
    assert!(message.contains("no queue 9"), "{message}");
    let (output, _) = Device::start(reply()).ctl(&["stats", "--json"]);
    let parsed: Statistics = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(parsed, statistics(3));
}

#[test]
fn watch_shows_what_is_done_meanwhile() {
    let replies = [3, 5, 5].map(|reads| Reply::returned::<QueryStatistics>(&statistics(reads)));
    let device = Device::start(replies.into());
    let (output, commands) = device.ctl(&["stats", "--watch", "1", "--count", "2", "--json"]);
    let reads: Vec<_> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str::<Statistics>(line).unwrap())
        .map(|statistics| (statistics.total.reads, statistics.queues[1].counts.reads))
        .collect();
    assert_eq!(reads, [(2, 2), (0, 0)]);
    assert_eq!(commands.len(), 3);
}

#[test]
fn metrics_name_the_device() {
    let replies = || {
        vec![
            Reply::returned::<QueryDevice>(&status()),
            Reply::returned::<QueryStatistics>(&statistics(3)),
        ]
    };
    let args = ["stats", "--prometheus", "--name", "a"];
    let text = stdout(&Device::start(replies()).ctl(&args).0);
    assert!(
        text.contains("ringbar_read_bytes_total{device=\"a\",queue=\"2\",role=\"io\"} 3145728\n")
    );
    let device = Device::start(replies());
    let label = format!("device=\"{}\"", device.socket.display());
    let text = stdout(&device.ctl(&["stats", "--prometheus"]).0);
    assert!(text.contains(&label), "{text}");
}

#[test]
fn exit_status_says_whose_fault_it_is() {
    let directory = TempDir::new().unwrap();
    let none = directory.path().join("none");
    assert_eq!(failure(&ctl(&none, &["resize", "9E"])).0, 2);
    let refused = Device::start(vec![Reply::refused("too large")]);
    let (code, message) = failure(&refused.ctl(&["resize", "9T"]).0);
    assert_eq!(
        (code, &message[..]),
        (1, "ringbarctl: the device refused: too large\n")
    );

    let (code, message) = failure(&Device::start(vec![]).ctl(&["status"]).0);
    assert_eq!(code, 3);
    assert!(message.contains("closed the connection"), "{message}");
    let (code, message) = failure(&ctl(&none, &["status"]));
    assert_eq!(code, 3);
    assert!(message.contains("--control-socket"), "{message}");
    let (code, message) = failure(&program().arg("status").output().unwrap());
    assert_eq!(code, 2);
    assert!(message.contains("RINGBAR_CONTROL_SOCKET"), "{message}");
}

#[test]
fn completions_and_manual_need_no_device() {
    for shell in ["bash", "zsh", "fish"] {
        let output = program().args(["completions", shell]).output().unwrap();
        assert!(stdout(&output).contains("ringbarctl"), "{shell}");
    }
    let directory = TempDir::new().unwrap();
    let output = program().arg("man").arg(directory.path()).output().unwrap();
    assert_eq!(stdout(&output), "");
    let page = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert!(
        page("ringbarctl.1").contains("EXIT STATUS")
            || page("ringbarctl.1").contains("Exit status")
    );
    assert!(page("ringbarctl-stats.1").contains("prometheus"));
    assert!(!directory.path().join("ringbarctl-man.1").exists());
}
