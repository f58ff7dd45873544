// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A connection to a device.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::MAX_REPLY_BYTES;
use crate::command::{Command, Execute};
use crate::wire::{self, ReplyRead};

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be connected to.
    #[error("cannot connect to {}: {source}{}", path.display(), hint(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The connection failed.
    #[error("the connection to the device failed: {0}")]
    Connection(#[source] io::Error),
    /// There was no reply in time.
    #[error("the device has not replied within {} s; it may still execute the command", .0.as_secs())]
    Timeout(Duration),
    /// The device closed the connection.
    #[error("the device has closed the connection without a reply")]
    Closed,
    /// The reply is not one of this command.
    #[error("the reply of the device makes no sense, so it is of another version: {0}")]
    Reply(#[source] serde_json::Error),
    /// The device refused the command.
    #[error("the device refused: {0}")]
    Refused(String),
}

/// What a user can do about an error of connect(2).
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "\nNo device has this control socket. ringbar-device creates it with --control-socket"
        }
        io::ErrorKind::PermissionDenied => {
            "\nOnly the user that the device runs as, and root, can control it"
        }
        io::ErrorKind::ConnectionRefused => "\nThe device that created the socket has ended",
        _ => "",
    }
}

/// A connection to a device.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    timeout: Duration,
}

impl Client {
    /// Connects to the control socket at `path`. Each reply must come within `timeout`, which is at
    /// least 1 s.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let timeout = timeout.max(Duration::from_secs(1));
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
            timeout,
        })
    }

    /// Has the device execute a command, and returns what it returns.
    pub fn execute<E: Execute>(&mut self, command: E) -> Result<E::Return, ClientError> {
        let command: Command = command.into();
        let line = wire::request_line(&command).map_err(ClientError::Reply)?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Timeout(self.timeout)
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
            _ => ClientError::Connection(error),
        };
        // A device that refuses the connection has written a reply and closed it already.
        let written = self.stream.get_mut().write_all(line.as_bytes());
        let mut reply = Vec::new();
        let read = (&mut self.stream)
            .take(MAX_REPLY_BYTES)
            .read_until(b'\n', &mut reply);
        if reply.last() != Some(&b'\n') {
            written.map_err(failed)?;
            read.map_err(failed)?;
            return Err(ClientError::Closed);
        }
        match wire::parse_reply(&reply).map_err(ClientError::Reply)? {
            ReplyRead::Returned(value) => Ok(value),
            ReplyRead::Refused(description) => Err(ClientError::Refused(description)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::command::QueryFaults;

    /// The result of a command to which a device replies with these bytes.
    fn reply(bytes: &'static [u8]) -> Result<usize, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let device = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(bytes).unwrap();
            line
        });
        let mut client = Client::connect(&path, Duration::from_secs(20)).unwrap();
        let result = client.execute(QueryFaults {});
        let line = device.join().unwrap();
        assert_eq!(line, "{\"execute\":\"query-faults\",\"arguments\":{}}\n");
        result
            .map(|faults| faults.len())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn replies_are_results_or_say_what_is_wrong() {
        assert_eq!(reply(b"{\"return\": []}\n"), Ok(0));
        // Of a later version.
        let line = b"{\"return\": [{\"id\": 1, \"rule\": \"short\", \"matches\": 0, \
                     \"firings\": 0, \"since\": 7}], \"timestamp\": 5}\n";
        assert_eq!(reply(line), Ok(1));
        for (bytes, message) in [
            (&b""[..], "closed the connection"),
            (b"{\"return\": []}", "closed the connection"),
            (
                b"{\"error\": {\"desc\": \"no\"}}\n",
                "the device refused: no",
            ),
            (b"{\"error\": 5}\n", "makes no sense"),
            (b"{\"return\": 5}\n", "makes no sense"),
            (b"{}\n", "makes no sense"),
            (b"5\n", "makes no sense"),
            (b"hello\n", "makes no sense"),
        ] {
            let error = reply(bytes).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn connections_that_fail_have_a_hint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let connect = || {
            let error = Client::connect(&path, Duration::ZERO).unwrap_err();
            error.to_string()
        };
        let error = connect();
        assert!(error.contains("--control-socket"), "{error}");
        drop(UnixListener::bind(&path).unwrap());
        let error = connect();
        assert!(error.contains("has ended"), "{error}");
    }

    #[test]
    fn a_device_that_does_not_reply_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path, Duration::ZERO).unwrap();
        let error = client.execute(QueryFaults {}).unwrap_err();
        assert!(matches!(error, ClientError::Timeout(_)), "{error:?}");
    }
}
