// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A log whose reader is stuck.

use crate::support::{Daemon, Vmm};
use ringbar_spec::StatusCode;

#[test]
fn a_log_that_nobody_reads_does_not_stop_the_device() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1", "--log", "debug"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let reading = daemon.reading();
    let held = reading.lock().unwrap();
    // Each of them logs a line. They exceed the pipe and the buffer for waiting lines.
    for _ in 0..3000 {
        let (status, _) = vmm.io(0).read(1 << 20, 1);
        assert_eq!(status.code, StatusCode::OutOfRange);
    }
    drop(held);
    daemon.wait_log("log lines were lost");
    drop(vmm);
    let line = daemon.wait_log("done requests=");
    assert!(line.contains("errors=3000"), "{line}");
    daemon.assert_ended_well();
}
