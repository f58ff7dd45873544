// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Waits for a daemon to listen on its socket.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify;

use crate::error::{Error, Result};
use crate::process::{HostProcess, wait_readable};

/// Maximum time until a daemon accepts connections.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(20);

/// An inotify watch for sockets in a directory. To be created before the daemon is
/// started.
#[derive(Debug)]
pub struct SocketWatch(OwnedFd);

impl SocketWatch {
    /// Starts the watch.
    pub fn new(directory: &Path) -> Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|errno| Error::io("creating an inotify instance")(errno.into()))?;
        inotify::add_watch(&watch, directory, inotify::WatchFlags::CREATE).map_err(|errno| {
            Error::io(format!("watching {}", directory.display()))(errno.into())
        })?;
        Ok(Self(watch))
    }

    /// Waits until `process` listens on this socket in the directory.
    ///
    /// A test connection is not possible, because the daemon serves a single connection.
    pub fn wait(&self, socket: &Path, process: &mut HostProcess) -> Result<()> {
        /// Interval of polling a socket that exists. It listens within microseconds, but
        /// no event reports that.
        const POLL_INTERVAL: Duration = Duration::from_millis(5);
        const DURING: &str = "it was expected to open its socket";

        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            if is_listening(socket)? {
                return Ok(());
            }
            if let Some(error) = process.exit_error(DURING) {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout {
                    what: format!("{} to listen", socket.display()),
                    after: LISTEN_TIMEOUT,
                });
            }
            let next = if socket.exists() {
                Instant::now() + POLL_INTERVAL
            } else {
                deadline
            };
            wait_readable(&[&self.0, process.ended()], next).map_err(Error::io(format!(
                "waiting for {} to listen",
                process.name()
            )))?;
            let mut events = [0; 4096];
            // Only the occurrence of an event matters, not its content.
            while matches!(rustix::io::read(&self.0, &mut events), Ok(n) if n > 0) {}
        }
    }
}

/// Whether some process listens on this Unix socket.
fn is_listening(socket: &Path) -> Result<bool> {
    let table = "/proc/net/unix";
    let text = fs::read(table).map_err(Error::io(format!("reading {table}")))?;
    Ok(lists_listener(
        &String::from_utf8_lossy(&text),
        &socket.display().to_string(),
    ))
}

/// Whether the text of `/proc/net/unix` lists a listening socket with this path.
fn lists_listener(table: &str, path: &str) -> bool {
    /// `__SO_ACCEPTCON` of the kernel.
    const SO_ACCEPTCON: u32 = 1 << 16;
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let flags = fields.next().and_then(|f| u32::from_str_radix(f, 16).ok());
        flags.is_some_and(|flags| flags & SO_ACCEPTCON != 0)
            && line
                .split_once(" /")
                .is_some_and(|(_, rest)| rest == &path[1..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_listening_socket_is_told_from_a_bound_one() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 123 /tmp/x/listens\n\
            0000000000000000: 00000002 00000000 00000000 0001 01 124 /tmp/x/bound\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 125\n";
        assert!(lists_listener(table, "/tmp/x/listens"));
        assert!(!lists_listener(table, "/tmp/x/bound"));
        assert!(!lists_listener(table, "/x/listens"));
        assert!(!lists_listener(table, "/tmp/x/none"));
    }

    #[test]
    fn the_kernel_lists_our_own_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_listening(&path).unwrap());
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(is_listening(&path).unwrap());
        // The test makes no statement about a dropped listener: the child of another test
        // holds a copy between fork and exec.
    }
}
