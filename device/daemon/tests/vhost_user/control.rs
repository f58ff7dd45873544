// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket, by the client that ringbarctl uses.

use std::time::Duration;

use crate::support::{Daemon, Vmm};
use ringbar_control::command::{QueryDevice, QueryStatistics, Resize, SetLog, Shutdown};
use ringbar_control::{Client, ClientError, Execute, Histogram};
use ringbar_spec::Opcode;
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);

struct Controlled {
    daemon: Daemon,
    client: Client,
}

impl Controlled {
    fn start(args: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let control = directory.path().join("control");
        let mut all = vec!["--size", "1M", "--queues", "1", "--control-socket"];
        all.push(control.to_str().unwrap());
        all.extend(args);
        let daemon = Daemon::start_in(directory, &all);
        let client = Client::connect(&daemon.directory().join("control"), TIMEOUT).unwrap();
        Self { daemon, client }
    }

    #[track_caller]
    fn ask<E: Execute>(&mut self, command: E) -> E::Return {
        self.client.execute(command).unwrap()
    }
}

#[test]
fn e5_status_says_what_runs() {
    let mut device = Controlled::start(&[]);
    let status = device.ask(QueryDevice {});
    assert_eq!((status.bytes, status.io_queues), (1 << 20, 1));
    assert_eq!(status.storage, "memory");
    assert_eq!(status.socket, device.daemon.socket().to_str().unwrap());
    assert_eq!((status.connected, &status.log[..]), (false, "info"));
    let _vmm = Vmm::start(device.daemon.socket(), 1);
    assert!(device.ask(QueryDevice {}).connected);
}

#[test]
fn e5_statistics_are_those_of_each_queue() {
    let mut device = Controlled::start(&["--keep-running"]);
    assert!(
        device
            .ask(QueryStatistics {})
            .queues
            .iter()
            .all(|queue| queue.latencies.is_empty())
    );
    let mut vmm = Vmm::start(device.daemon.socket(), 1);
    vmm.io(0).write(0, &[1; 100]);
    vmm.io(0).command(Opcode::Flush);
    vmm.control().command(Opcode::MapAperture);
    drop(vmm);
    device.daemon.wait_log("disconnected");
    assert!(!device.ask(QueryDevice {}).connected);
    let statistics = device.ask(QueryStatistics {});
    let [control, event, io] = &statistics.queues[..] else {
        panic!("{statistics:?}");
    };
    assert_eq!(
        (
            control.counts.requests,
            event.counts.requests,
            io.counts.requests
        ),
        (1, 0, 2)
    );
    assert_eq!(
        (io.counts.writes, io.counts.flushes, io.counts.bytes_written),
        (1, 1, 100)
    );
    let measured: Vec<_> = io
        .latencies
        .iter()
        .map(|histogram| (&histogram.operation[..], Histogram::count(histogram)))
        .collect();
    assert_eq!(measured, [("write", 1), ("flush", 1)]);
    assert!(control.latencies.is_empty());
    assert_eq!(statistics.total.requests, 3);
}

#[test]
fn e5_log_is_changed_while_the_device_runs() {
    let mut device = Controlled::start(&[]);
    let filter = |text: &str| SetLog {
        filter: text.to_owned(),
    };
    let vmm = Vmm::start(device.daemon.socket(), 1);
    device.ask(filter("warn"));
    // Below the level: the line before would come first.
    device.ask(Resize { bytes: 2 << 20 });
    device.ask(filter("debug"));
    assert_eq!(device.ask(QueryDevice {}).log, "debug");
    device.daemon.wait_log("the log was changed");
    let refused = device.client.execute(filter("debgu")).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
    assert_eq!(device.ask(QueryDevice {}).log, "debug");
    assert!(
        device
            .daemon
            .seen()
            .iter()
            .all(|line| !line.contains("memory resized"))
    );
    device.ask(Resize { bytes: 1 << 20 });
    device.daemon.wait_log("memory resized");
    drop(vmm);
}

#[test]
fn e5_shutdown_ends_the_process_as_a_signal_does() {
    let mut device = Controlled::start(&["--keep-running"]);
    let mut vmm = Vmm::start(device.daemon.socket(), 1);
    vmm.io(0).write(0, &[1; 100]);
    device.ask(Shutdown {});
    device.daemon.wait_log("closing the connection");
    device.daemon.assert_clean_exit();
}
