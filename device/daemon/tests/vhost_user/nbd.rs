// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device on an NBD server.

use std::fs::File;
use std::os::unix::net::UnixListener;

use crate::block::{full_ring, put_ring, stops, wait_ring_with};
use crate::support::{Daemon, Vmm};
use ringbar_nbd_server::Server;
use ringbar_spec::{Opcode, StatusCode};
use tempfile::TempDir;

/// Starts a server with a file, and a daemon on it.
fn start() -> (Server, Daemon) {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (disk, socket) = (directory.path().join("disk"), directory.path().join("nbd"));
    File::create(&disk).unwrap().set_len(4 << 20).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let server = Server::start(listener, ["--format=raw".as_ref(), disk.as_os_str()]).unwrap();
    let storage = format!("nbd+unix:///?socket={}", socket.display());
    let daemon = Daemon::start_in(directory, &["--queues", "2", "--storage", &storage]);
    (server, daemon)
}

#[test]
fn e3_a_full_ring_of_transfers_is_executed() {
    let (_server, daemon) = start();
    full_ring(daemon);
}

#[test]
fn e3_a_full_ring_survives_stops() {
    let (_server, daemon) = start();
    stops(&daemon);
}

/// A full ring in flight ends with errors, and so does what follows. The end says why.
#[test]
fn e3_a_server_that_is_killed_ends_a_full_ring() {
    let (mut server, mut daemon) = start();
    let mut vmm = Vmm::start(daemon.socket(), 2);
    server.stall();
    put_ring(vmm.io(0), Opcode::Write);
    put_ring(vmm.io(1), Opcode::Read);
    server.kill();
    for queue in 0..2 {
        wait_ring_with(vmm.io(queue), StatusCode::IoError);
        let status = vmm.io(queue).command(Opcode::Flush);
        assert_eq!(status.code, StatusCode::IoError);
        assert_eq!(vmm.io(queue).read(0, 1).0.code, StatusCode::IoError);
    }
    let line = daemon.wait_log("until the storage is opened anew");
    assert!(line.contains("the connection to the server cannot be used any more"));
    drop(vmm);
    let line = daemon.wait_log("cannot write the last data to the storage");
    assert!(line.contains("ERROR"), "{line}");
    assert_eq!(daemon.wait().code(), Some(1));
}
