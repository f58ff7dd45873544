// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A storage on servers that violate the protocol, or offer little.

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::super::socket::{Socket, Timed};
use super::super::wire::{
    CMD_DISC, CMD_READ, CMD_WRITE, FIXED_NEWSTYLE, NO_ZEROES, REQUEST_BYTES, Reply, Request,
};
use super::super::{NbdStorage, NbdUri};
use super::{ack, greeting, info_blocks, info_export};
use crate::error::{ErrorKind, StorageError};
use crate::storage::Storage;

const SIZE: u64 = 1 << 20;

/// Flags of an export that has a flush and writes zeros.
const ALL: u16 = 1 | 1 << 2 | 1 << 6;

/// A server with one client.
struct Server {
    thread: JoinHandle<()>,
    uri: NbdUri,
    _directory: TempDir,
}

/// The server's end of a connection after the handshake.
struct Client(UnixStream);

impl Client {
    fn request(&mut self) -> (Request, Vec<u8>) {
        let mut header = [0; REQUEST_BYTES];
        self.0.read_exact(&mut header).unwrap();
        let request = Request::parse(header);
        let mut data = Vec::new();
        if request.command == CMD_WRITE {
            data.resize(request.length as usize, 0);
            self.0.read_exact(&mut data).unwrap();
        }
        (request, data)
    }

    fn reply(&mut self, error: u32, cookie: u64, data: &[u8]) {
        let reply = [&Reply { error, cookie }.encode()[..], data].concat();
        self.0.write_all(&reply).unwrap();
    }
}

impl Server {
    /// Accepts a client, and serves it as `serve` does.
    fn new(flags: u16, serve: impl FnOnce(&mut Client) + Send + 'static) -> Self {
        Self::with_blocks((SIZE, 1), flags, serve)
    }

    /// The same with this size and smallest block.
    fn with_blocks(
        (size, minimum): (u64, u32),
        flags: u16,
        serve: impl FnOnce(&mut Client) + Send + 'static,
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let first = greeting(FIXED_NEWSTYLE | NO_ZEROES);
            stream.write_all(&first).unwrap();
            // Its flags, and an option with an empty name.
            stream.read_exact(&mut [0; 4 + 16 + 8]).unwrap();
            let blocks = info_blocks([minimum, 4096, 1 << 20]);
            let answer = [info_export(size, flags), blocks, ack()].concat();
            stream.write_all(&answer).unwrap();
            serve(&mut Client(stream));
        });
        Self {
            thread,
            uri: uri.parse().unwrap(),
            _directory: directory,
        }
    }

    fn storage(&self) -> NbdStorage {
        NbdStorage::open(&self.uri, None).unwrap()
    }
}

fn read(storage: &NbdStorage, length: usize) -> Result<Vec<u8>, StorageError> {
    let mut data = vec![0; length];
    storage.read(0, VolatileSlice::from(&mut data[..]))?;
    Ok(data)
}

fn write(storage: &NbdStorage, mut data: Vec<u8>) -> Result<(), StorageError> {
    storage.write(0, VolatileSlice::from(&mut data[..]))
}

#[test]
fn a_server_that_lies_or_shuts_down_fails_the_storage() {
    type Lie = fn(&mut Client, u64);
    let lies: [(Lie, &str); 7] = [
        (|client, _| client.0.write_all(&[1; 16]).unwrap(), "magic"),
        (
            |client, cookie| client.reply(0, cookie + 1, &[0; 10]),
            "request",
        ),
        (
            |client, cookie| client.reply(0, cookie | 1 << 40, &[]),
            "request",
        ),
        // Half of the data, of the header, and nothing.
        (|client, cookie| client.reply(0, cookie, &[0; 5]), "closed"),
        (
            |client, _| client.0.write_all(&[0x67, 0x44]).unwrap(),
            "closed",
        ),
        (|_, _| (), "closed"),
        (
            |client, cookie| {
                client.reply(108, cookie, &[]);
                // It gets no further request.
                assert_eq!(client.request().0.command, CMD_DISC);
            },
            "shutting down",
        ),
    ];
    for (lie, reason) in lies {
        let server = Server::new(ALL, move |client| {
            let (request, _) = client.request();
            assert_eq!((request.command, request.length), (CMD_READ, 10));
            lie(client, request.cookie);
        });
        let storage = server.storage();
        for _ in 0..2 {
            let error = read(&storage, 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{reason}");
        }
        let failure = storage.failure().unwrap().reason;
        assert!(failure.contains(reason), "{failure}");
        assert!(
            failure.contains("the connection to the server"),
            "{failure}"
        );
        storage.flush().unwrap_err();
        storage.resize(SIZE / 2).unwrap_err();
        server.thread.join().unwrap();
    }
}

/// What the server answered before it lied counts.
#[test]
fn a_reply_that_comes_twice_does_not_end_twice() {
    let server = Server::new(ALL, |client| {
        let (request, _) = client.request();
        let twice = Reply {
            error: 0,
            cookie: request.cookie,
        };
        client.0.write_all(&twice.encode().repeat(2)).unwrap();
    });
    let storage = server.storage();
    write(&storage, vec![1; 10]).unwrap();
    read(&storage, 10).unwrap_err();
    let failure = storage.failure().unwrap().reason;
    assert!(failure.contains("does not have"), "{failure}");
    server.thread.join().unwrap();
}

/// A server has no errors that the client repeats for ever.
#[test]
fn an_error_of_the_server_is_one() {
    let server = Server::new(ALL, |client| {
        for (error, expected) in [(4, 1), (11, 1), (12, 101), (77, 1)] {
            for _ in 0..expected {
                let (request, _) = client.request();
                client.reply(error, request.cookie, &[]);
            }
        }
        let (request, _) = client.request();
        client.reply(0, request.cookie, &[5; 10]);
        // It does not go away before the client says so.
        assert_eq!(client.request().0.command, CMD_DISC);
    });
    let storage = server.storage();
    for _ in 0..4 {
        assert_eq!(read(&storage, 10).unwrap_err().kind(), ErrorKind::Io);
    }
    assert_eq!(read(&storage, 10).unwrap(), [5; 10]);
    assert_eq!(storage.failure(), None);
    drop(storage);
    server.thread.join().unwrap();
}

#[test]
fn a_server_without_flush_and_zeroes_will_do() {
    let server = Server::new(1, |client| {
        let mut written = 0;
        while written < SIZE {
            let (request, data) = client.request();
            assert_eq!((request.command, request.offset), (CMD_WRITE, written));
            assert!(data.iter().all(|byte| *byte == 0));
            written += data.len() as u64;
            client.reply(0, request.cookie, &[]);
        }
    });
    let storage = server.storage();
    storage.flush().unwrap();
    storage.discard(0, SIZE).unwrap();
    server.thread.join().unwrap();
}

#[test]
fn the_rest_of_a_block_is_not_used() {
    let server = Server::with_blocks((SIZE + 511, 512), ALL, |client| {
        assert_eq!(client.request().0.command, CMD_DISC);
    });
    let storage = server.storage();
    assert_eq!(storage.capacity(), SIZE);
    storage.resize(SIZE + 512).unwrap_err();
    drop(storage);
    server.thread.join().unwrap();
}

#[test]
fn a_handshake_does_not_wait_for_ever() {
    let (own, mut other) = UnixStream::pair().unwrap();
    let socket = Socket::Unix(own);
    let mut timed = Timed::new(&socket, Duration::from_millis(50));
    let error = timed.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::TimedOut);
    // Nor is there more time for one that sends a byte now and then.
    other.write_all(&[1]).unwrap();
    let error = timed.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::TimedOut);
}
