// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device whose storage fails while a guest uses it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::{Daemon, Vmm};
use ringbar_spec::{Opcode, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

/// The reason for which the storage has failed, from the control socket.
fn failure(directory: &Path) -> Value {
    let mut stream = UnixStream::connect(directory.join("control")).unwrap();
    writeln!(stream, "{{\"execute\": \"query-device\"}}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap();
    answer["return"]["storage-failure"].clone()
}

#[test]
fn ho8_failed_storage_ends_requests_with_errors_only() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("disk");
    let storage = format!("file:{}", file.display());
    let control = directory.path().join("control");
    let args = [
        "--size",
        "1M",
        "--queues",
        "2",
        "--storage",
        &storage,
        "--control-socket",
        control.to_str().unwrap(),
        "--keep-running",
    ];
    let mut daemon = Daemon::start_in(directory, &args);
    let mut vmm = Vmm::start(daemon.socket(), 2);
    vmm.io(0).write(0, &[1; 100]);
    assert_eq!(failure(daemon.directory()), Value::Null);
    fs::write(&file, "").unwrap();

    // This request and the next, on each queue.
    for _ in 0..2 {
        for queue in 0..2 {
            let (status, _) = vmm.io(queue).read(65536, 100);
            assert_eq!(status.code, StatusCode::IoError);
            let status = vmm.io(queue).write(0, &[1; 100]);
            assert_eq!(status.code, StatusCode::IoError);
            for opcode in [Opcode::Flush, Opcode::Discard, Opcode::Crc32c] {
                let status = vmm.io(queue).command(opcode);
                let code = match opcode {
                    // It reads no bytes.
                    Opcode::Crc32c => StatusCode::Ok,
                    _ => StatusCode::IoError,
                };
                assert_eq!(status.code, code, "{opcode:?}");
            }
        }
    }
    // The log has the reason once, and then the requests that failed.
    let line = daemon.wait_log("until it is opened anew");
    assert!(line.contains("ERROR") && line.contains("disk was truncated to 0 bytes"));
    let line = daemon.wait_log("request failed");
    assert!(line.contains("WARN") && line.contains("the storage failed: "));
    assert!(line.contains("truncated"), "{line}");
    let failure = failure(daemon.directory());
    assert!(failure.as_str().unwrap().contains("truncated"), "{failure}");

    // A guest that accessed the aperture would end QEMU.
    drop(vmm);
    let mut vmm = Vmm::start(daemon.socket(), 2);
    let status = vmm.control().command(Opcode::MapAperture);
    assert_eq!(status.code, StatusCode::ApertureUnavailable);
    assert_eq!(vmm.maps(), 0);
}

#[test]
fn ho15_guest_errors_are_not_logged_as_storage_failures() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    assert_eq!(vmm.io(0).read(1 << 20, 1).0.code, StatusCode::OutOfRange);
    daemon.signal(rustix::process::Signal::TERM);
    loop {
        let line = daemon.wait_log("");
        assert!(!line.contains("request failed"), "{line}");
        if line.contains("done requests=") {
            break;
        }
    }
}
