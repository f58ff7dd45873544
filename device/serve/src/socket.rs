// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Listening sockets and their files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode, OFlags, chmod, fchmod, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tracing::{debug, info, warn};

use crate::args::Endpoint;

/// Greatest number of connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket on which the process will listen once the device exists.
#[derive(Debug)]
pub enum PreparedSocket {
    /// A socket that is still to be created.
    Create {
        /// Path of its file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// A socket that listens already.
    Inherited(UnixListener),
}

impl PreparedSocket {
    /// Takes ownership of an inherited descriptor. The caller calls it before the process opens
    /// any descriptor.
    pub fn new(endpoint: &Endpoint) -> anyhow::Result<Self> {
        Ok(match endpoint {
            Endpoint::Path { path, mode } => Self::Create {
                path: path.clone(),
                mode: *mode,
            },
            Endpoint::Fd(fd) => Self::Inherited(inherited(*fd)?),
            Endpoint::Handover => bail!("this process has no socket of its own"),
        })
    }

    /// Starts to listen.
    pub fn listen(self) -> anyhow::Result<Socket> {
        let (listener, file) = match self {
            Self::Create { path, mode } => {
                let (listener, file) = bind(&path, mode)?;
                (listener, Some(file))
            }
            Self::Inherited(listener) => (listener, None),
        };
        Ok(Socket {
            listener: Some(listener),
            _file: file,
        })
    }
}

/// A listening socket. Dropping it removes its file, if this process created one.
pub struct Socket {
    listener: Option<UnixListener>,
    /// Dropped last.
    _file: Option<SocketFile>,
}

impl Socket {
    /// The listening socket, unless closed.
    pub fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    /// Takes the listening socket out, for a part of the process that accepts by itself. The file
    /// stays until this is dropped.
    pub fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// Stops listening, so that further connections are refused and do not wait.
    pub fn close(&mut self) {
        self.listener = None;
    }
}

/// The right to create and remove the socket file at a path: an exclusive lock of a file beside
/// it, which is removed with the lock. Only instances of this program respect the lock.
#[derive(Debug)]
struct PathLock {
    path: PathBuf,
    _file: File,
}

impl PathLock {
    /// The lock of the socket at `path`, or `None` where another process has it.
    fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits() as i32)
                .open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                other => other?,
            }
            // The previous owner may have removed the file after this process opened it.
            let ours = file.metadata()?;
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok(Some(Self { path, _file: file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // The file is still locked, so a process that opened it finds that it was removed.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %self.path.display(), %error, "cannot remove the lock file");
            }
            _ => {}
        }
    }
}

/// A socket file that this process created.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
    /// Dropped last.
    _lock: PathLock,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have put another file in its place, which stays.
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.id => {
                if let Err(error) = fs::remove_file(&self.path) {
                    warn!(path = %self.path.display(), %error, "cannot remove the socket");
                }
            }
            other => {
                debug!(path = %self.path.display(), ?other, "socket file is not ours any more")
            }
        }
    }
}

/// Creates a socket file with these permission bits and listens on it. The file of a process
/// that has ended is replaced.
pub fn bind(path: &Path, mode: u32) -> anyhow::Result<(UnixListener, SocketFile)> {
    let cannot = || format!("cannot create the socket {}", path.display());
    let Some(lock) = PathLock::take(path).with_context(cannot)? else {
        return Err(in_use(path));
    };
    let address = SocketAddrUnix::new(path).with_context(cannot)?;
    let mode = Mode::from_bits_truncate(mode);
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .with_context(cannot)?;
    // The file gets the permission bits of the socket without those of the umask (unix(7)), so
    // at no time can other users connect than the bits allow.
    fchmod(&socket, mode).with_context(cannot)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path)?;
            rustix::net::bind(&socket, &address).with_context(cannot)?;
        }
        other => other.with_context(cannot)?,
    }
    let metadata = fs::symlink_metadata(path).with_context(cannot)?;
    let file = SocketFile {
        path: path.to_owned(),
        id: (metadata.dev(), metadata.ino()),
        _lock: lock,
    };
    // Without delay: a client that waits for the file connects as soon as it exists.
    rustix::net::listen(&socket, BACKLOG).with_context(cannot)?;
    // Restores the bits that the umask removed.
    chmod(path, mode).with_context(cannot)?;
    Ok((UnixListener::from(socket), file))
}

fn in_use(path: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "the socket {} is in use by another process: stop it, or use another path",
        path.display()
    )
}

/// Removes a socket file whose process has ended.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot inspect {shown}"))?;
    if !metadata.file_type().is_socket() {
        bail!("{shown} exists and is not a socket: remove it, or use another path");
    }
    // A datagram socket cannot connect to a stream socket. So this tests whether a process
    // listens, without taking its only connection.
    let probe = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    match probe.map_err(|error| error.raw_os_error()) {
        Err(Some(code)) if code == Errno::CONNREFUSED.raw_os_error() => {}
        Err(Some(code)) if code == Errno::NOENT.raw_os_error() => return Ok(()),
        _ => return Err(in_use(path)),
    }
    info!(path = %shown, "replacing the socket of a process that is gone");
    fs::remove_file(path).with_context(|| format!("cannot remove the old socket {shown}"))
}

fn inherited(fd: RawFd) -> anyhow::Result<UnixListener> {
    if fd <= rustix::stdio::raw_stderr() {
        bail!("--fd {fd} is a standard stream, not a socket");
    }
    // SAFETY: by the argument, the parent passed the ownership of this descriptor. No other
    // code of this process uses it, because this runs once, before the process opens any
    // descriptor. A number that is not open fails in the next call.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    match (socket_domain(&socket), socket_acceptconn(&socket)) {
        (Ok(AddressFamily::UNIX), Ok(true)) => {
            // A process that this one starts must not have it as well.
            fcntl_setfd(&socket, FdFlags::CLOEXEC)
                .with_context(|| format!("cannot keep --fd {fd} from other programs"))?;
            Ok(UnixListener::from(socket))
        }
        (Err(Errno::BADF), _) => {
            // Closing a descriptor that is not open would be another error.
            std::mem::forget(socket);
            bail!("--fd {fd} is not open in this process")
        }
        _ => bail!("--fd {fd} is not a listening Unix socket"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use rustix::io::fcntl_getfd;

    use super::*;

    fn stale(directory: &Path) -> PathBuf {
        let path = directory.join("socket");
        drop(UnixListener::bind(&path).unwrap());
        path
    }

    #[test]
    fn a_stale_socket_has_one_successor() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let path = stale(directory.path());
            let barrier = Barrier::new(4);
            let bound: Vec<_> = thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    bind(&path, 0o600)
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let (winners, others): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
            assert_eq!(winners.len(), 1);
            for other in others {
                let error = other.unwrap_err().to_string();
                assert!(error.contains("in use by another process"), "{error}");
            }
            UnixStream::connect(&path).unwrap();
            winners[0].as_ref().unwrap().0.accept().unwrap();
            drop(winners);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn lock_has_one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let holders = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Some(lock) = PathLock::take(&path).unwrap() {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            thread::yield_now();
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn path_locked_by_another_instance_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = stale(directory.path());
        let lock = PathLock::take(&path).unwrap().unwrap();
        let error = bind(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        assert!(path.exists());
        drop(lock);
        bind(&path, 0o600).unwrap();
    }

    #[test]
    fn a_socket_of_the_parent_is_not_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        fcntl_setfd(&listener, FdFlags::empty()).unwrap();
        let listener = inherited(listener.into_raw_fd()).unwrap();
        assert_eq!(fcntl_getfd(&listener).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn a_socket_of_another_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let error = bind(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        // It has not been connected to either.
        listener.set_nonblocking(true).unwrap();
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_lock_file_that_is_left_over_does_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        fs::write(directory.path().join("socket.lock"), "").unwrap();
        let bound = bind(&path, 0o600).unwrap();
        assert!(bind(&path, 0o600).is_err());
        drop(bound);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_file_has_the_mode_that_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for mode in [0o600, 0o660, 0o777, 0o400] {
            let bound = bind(&path, mode).unwrap();
            let found = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
            drop(bound);
        }
    }
}
