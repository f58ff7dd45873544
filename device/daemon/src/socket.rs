// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Listening sockets and their files.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use tracing::{debug, info, warn};

use crate::cli::Endpoint;

/// A socket that listens. Its file, if we made one, goes with it.
pub struct Socket {
    listener: Option<UnixListener>,
    /// Dropped last.
    _file: Option<SocketFile>,
}

impl Socket {
    /// Starts to listen.
    pub fn open(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let (listener, file) = match endpoint {
            Endpoint::Path(path) => {
                let (listener, file) = bind(path)?;
                (listener, Some(file))
            }
            Endpoint::Fd(fd) => (inherited(*fd)?, None),
        };
        Ok(Self {
            listener: Some(listener),
            _file: file,
        })
    }

    /// The listening socket, unless closed.
    pub fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    /// Accepts nobody any more: who connects is refused instead of waiting for
    /// an answer that never comes.
    pub fn close(&mut self) {
        self.listener = None;
    }
}

/// A socket file that we made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Unless somebody put another one in its place.
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

/// Makes a socket file and listens there. A file that is left over from a dead
/// process is replaced.
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let cannot = || format!("cannot create the socket {}", path.display());
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path).with_context(cannot)?
        }
        other => other.with_context(cannot)?,
    };
    let metadata = fs::symlink_metadata(path).with_context(cannot)?;
    Ok((
        listener,
        SocketFile {
            path: path.to_owned(),
            id: (metadata.dev(), metadata.ino()),
        },
    ))
}

/// Removes a socket file whose process is gone.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot inspect {shown}"))?;
    if !metadata.file_type().is_socket() {
        bail!("{shown} exists and is not a socket: remove it, or use another path");
    }
    // A datagram socket cannot connect to a stream socket, so this asks whether
    // one listens without taking up its only connection.
    let probe = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    match probe.map_err(|error| error.raw_os_error()) {
        Err(Some(code)) if code == Errno::CONNREFUSED.raw_os_error() => {}
        Err(Some(code)) if code == Errno::NOENT.raw_os_error() => return Ok(()),
        _ => bail!("the socket {shown} is in use by another process: stop it, or use another path"),
    }
    info!(path = %shown, "replacing the socket of a process that is gone");
    fs::remove_file(path).with_context(|| format!("cannot remove the old socket {shown}"))
}

fn inherited(fd: RawFd) -> anyhow::Result<UnixListener> {
    if fd <= rustix::stdio::raw_stderr() {
        bail!("--fd {fd} is a standard stream, not a socket");
    }
    // SAFETY: the parent gave us this descriptor to own, as the argument says,
    // and nothing else in this process uses it: this runs once, and the
    // descriptors that the process opened itself are none that the user could
    // name by purpose. A number that is not open fails in the next call.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    match (socket_domain(&socket), socket_acceptconn(&socket)) {
        (Ok(AddressFamily::UNIX), Ok(true)) => Ok(UnixListener::from(socket)),
        (Err(Errno::BADF), _) => {
            // Closing what is not open would be an error of its own.
            std::mem::forget(socket);
            bail!("--fd {fd} is not open in this process")
        }
        _ => bail!("--fd {fd} is not a listening Unix socket"),
    }
}
