// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The socket of a connection.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, sockopt};

use super::error::NbdError;
use super::uri::Address;

/// How long a connection, and then the handshake, may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence after which the kernel asks whether the other machine is still there, and then how
/// often, every [`PROBE_INTERVAL`]. A dead network ends a connection with nothing to send after
/// 30 s.
///
/// The kernel does not ask while data wait to be sent or acknowledged: it repeats those up to the
/// limit of the system (`net.ipv4.tcp_retries2`), for about 15 minutes. `TCP_USER_TIMEOUT` would
/// make that shorter, but it also ends the connection to a server that is alive and takes no data
/// for that time, because its receive window is full.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 4;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects, and has the kernel end an idle connection whose network is dead.
    pub(super) fn connect(address: &Address) -> Result<Self, NbdError> {
        let connect_error = |source| NbdError::Connect {
            address: address.to_string(),
            source,
        };
        let (host, port) = match address {
            Address::Unix(path) => {
                let stream = connect_unix(path, HANDSHAKE_TIMEOUT);
                return stream.map(Self::Unix).map_err(connect_error);
            }
            Address::Tcp { host, port } => (host, *port),
        };
        let addresses = (host.as_str(), port).to_socket_addrs();
        let resolve_error = |source| NbdError::Resolve {
            host: host.clone(),
            source,
        };
        let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
        for address in addresses.map_err(resolve_error)? {
            match TcpStream::connect_timeout(&address, HANDSHAKE_TIMEOUT) {
                Ok(stream) => {
                    keep_alive(&stream).map_err(connect_error)?;
                    return Ok(Self::Tcp(stream));
                }
                Err(error) => last = error,
            }
        }
        Err(connect_error(last))
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(true),
            Self::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    /// Most time that one call waits.
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout);
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }
}

/// As [`UnixStream::connect`], which waits for ever for a server that accepts no connections.
fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // That of a connection, too (socket(7)).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    match retry_on_intr(|| connect(&socket, &address)) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(Errno::AGAIN) => {
            let what = "the server accepts no connections";
            Err(io::Error::new(ErrorKind::TimedOut, what))
        }
        Err(errno) => Err(errno.into()),
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(())
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read(bytes),
            Socket::Unix(stream) => (&*stream).read(bytes),
        }
    }

    fn read_vectored(&mut self, pieces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read_vectored(pieces),
            Socket::Unix(stream) => (&*stream).read_vectored(pieces),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write(bytes),
            Socket::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write_vectored(pieces),
            Socket::Unix(stream) => (&*stream).write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that waits, for a limited time altogether.
pub(super) struct Timed<'a> {
    socket: &'a Socket,
    until: Instant,
}

impl<'a> Timed<'a> {
    pub(super) fn new(socket: &'a Socket, timeout: Duration) -> Self {
        Self {
            socket,
            until: Instant::now() + timeout,
        }
    }

    fn wait<T>(&mut self, call: impl FnOnce(&mut &'a Socket) -> io::Result<T>) -> io::Result<T> {
        let timed_out = || io::Error::new(ErrorKind::TimedOut, "the server does not answer");
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timed_out());
        }
        self.socket.set_timeout(left)?;
        call(&mut self.socket).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => timed_out(),
            _ => error,
        })
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.wait(|socket| socket.read(bytes))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(|socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::net::{bind, listen, socket};
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn silence_ends_a_tcp_connection_and_a_full_window_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
        };
        let socket = Socket::connect(&address).unwrap();
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        let probes =
            sockopt::tcp_keepintvl(&socket).unwrap() * sockopt::tcp_keepcnt(&socket).unwrap();
        let silence = sockopt::tcp_keepidle(&socket).unwrap() + probes;
        assert_eq!(silence, Duration::from_secs(30));
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 0);
    }

    #[test]
    fn a_server_that_accepts_nobody_is_not_waited_for() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("nbd.sock");
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let (sender, results) = channel();
        thread::spawn(move || {
            // The kernel accepts the first one.
            let first = connect_unix(&path, Duration::from_secs(10));
            sender.send(first.map(drop)).unwrap();
            let second = connect_unix(&path, Duration::from_millis(50));
            sender.send(second.map(drop)).unwrap();
        });
        let result = || results.recv_timeout(Duration::from_secs(10)).unwrap();
        result().unwrap();
        assert_eq!(result().unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
