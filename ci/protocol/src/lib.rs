// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The protocol between the test harness on the host and `ringbar-init`, PID 1 of the
//! guest, over a virtio-serial port. [`host`] is the protocol between test programs in
//! the guest and the harness, over a second port. [`machine`] names properties of the machine.
//!
//! Each message is a frame: its length as a little-endian `u32`, then that many bytes of
//! [postcard]. The guest sends first, with [`Reply::Hello`]. Every request has a number
//! chosen by the host, and its replies have the same number. Each request has one reply,
//! except [`Request::Exec`], whose output comes in any number of messages before
//! [`Reply::Exited`].
//!
//! When the host closes the port, the guest powers itself off.

#![forbid(unsafe_code)]

pub mod host;
pub mod machine;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port, as in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "org.ringbar.agent";

/// Version of the messages in this crate. Host and guest are built from the same source,
/// so different versions mean an outdated guest image.
pub const VERSION: u32 = 1;

/// Kernel parameter: the mode of PID 1.
pub const MODE_PARAMETER: &str = "ringbar.mode";

/// Value of [`MODE_PARAMETER`] for an interactive shell on the serial console.
/// Without it PID 1 only serves requests.
pub const MODE_SHELL: &str = "shell";

/// Kernel parameter: type of the terminal on the serial console, for `TERM` of the shell.
pub const TERM_PARAMETER: &str = "agent.term";

/// Kernel parameter: a serial line for requests to PID 1 instead of the virtio-serial
/// port, which Linux 7.3 does not open again after a suspend.
pub const LINE_PARAMETER: &str = "agent.line";

/// Text in the kernel log when a test begins, before the test's name.
pub const TEST_MARK: &str = "ringbar-guest-tests: begins with ";

/// Maximum bytes of a frame. The sender splits output into smaller messages.
pub const MAX_FRAME: usize = 4 << 20;

/// Number that matches replies to their request.
pub type RequestId = u32;

/// Errors of reading or writing a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The connection ended between two frames.
    #[error("the connection was closed")]
    Closed,
    /// A frame to read or to write is larger than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is above the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The frame is not a valid message of this version.
    #[error("a frame holds no valid message: {0}")]
    Encoding(#[from] postcard::Error),
}

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run a program in a session of its own. Replies: output and [`Reply::Exited`], or
    /// [`Reply::Failed`] if the program could not be started.
    Exec {
        /// Number of this request.
        id: RequestId,
        /// Program and arguments; the program is looked up in `PATH`.
        argv: Vec<String>,
        /// Variables added to the environment.
        env: Vec<(String, String)>,
        /// Working directory; `/` by default.
        directory: Option<String>,
    },
    /// Send a signal to the process group of a running [`Request::Exec`]. Answered with
    /// [`Reply::Done`] also if the process has just ended.
    Signal {
        /// Number of this request.
        id: RequestId,
        /// Number of the request that started the process.
        target: RequestId,
        /// Signal number.
        signal: i32,
    },
    /// Mount the 9p share with this tag.
    MountShare {
        /// Number of this request.
        id: RequestId,
        /// Mount tag of QEMU's `-virtfs`.
        tag: String,
        /// Mount point, created if it does not exist.
        target: String,
    },
    /// Send the content of a file, which must fit into a frame.
    ReadFile {
        /// Number of this request.
        id: RequestId,
        /// Absolute path.
        path: String,
    },
    /// Send the kernel's log from its start.
    KernelLog {
        /// Number of this request.
        id: RequestId,
    },
    /// Set the size of the terminal behind the serial console.
    ResizeConsole {
        /// Number of this request.
        id: RequestId,
        /// Lines of the terminal.
        rows: u16,
        /// Characters of a line.
        columns: u16,
    },
    /// Sync and power off; there is no reply.
    PowerOff,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// The process exited with this status.
    Exited(i32),
    /// A signal ended the process.
    Signaled(i32),
}

impl ExitStatus {
    /// The status a shell would report: a signal `n` becomes 128 + `n`.
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }

    /// Whether the process exited with status 0.
    pub const fn success(self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// From the guest to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The guest is up. Sent once, before anything else.
    Hello {
        /// [`VERSION`] of the guest.
        version: u32,
        /// Release of the guest's kernel, as `uname -r` prints it.
        kernel_release: String,
    },
    /// The process of this [`Request::Exec`] wrote to its standard output.
    Stdout {
        /// Number of the request.
        id: RequestId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The process of this [`Request::Exec`] wrote to its standard error.
    Stderr {
        /// Number of the request.
        id: RequestId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The process of this [`Request::Exec`] has ended, and all that it wrote
    /// has been sent.
    Exited {
        /// Number of the request.
        id: RequestId,
        /// Exit status.
        status: ExitStatus,
    },
    /// The request was executed.
    Done {
        /// Number of the request.
        id: RequestId,
    },
    /// The requested file or log.
    Content {
        /// Number of the request.
        id: RequestId,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// The request failed.
    Failed {
        /// Number of the request.
        id: RequestId,
        /// The failed operation and its error.
        message: String,
    },
}

impl Reply {
    /// Number of the request this is a reply to; `None` for [`Reply::Hello`].
    pub const fn id(&self) -> Option<RequestId> {
        match self {
            Self::Hello { .. } => None,
            Self::Stdout { id, .. }
            | Self::Stderr { id, .. }
            | Self::Exited { id, .. }
            | Self::Done { id }
            | Self::Content { id, .. }
            | Self::Failed { id, .. } => Some(*id),
        }
    }
}

/// In the guest: the device file of the virtio-serial port of this name, if it exists
/// yet.
pub fn find_port(name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let found = fs::read_to_string(entry.path().join("name"));
        if found.is_ok_and(|found| found.trim_end() == name) {
            let device = Path::new("/dev").join(entry.file_name());
            if device.exists() {
                return Some(device);
            }
        }
    }
    None
}

/// Writes one frame and flushes it.
pub fn write_frame<M: Serialize>(mut to: impl Write, message: &M) -> Result<(), FrameError> {
    let body = postcard::to_stdvec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_FRAME)
        .ok_or(FrameError::TooLong(body.len()))?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    to.write_all(&frame)?;
    to.flush()?;
    Ok(())
}

/// Reads one frame. An end of file between two frames is [`FrameError::Closed`],
/// one within a frame is an I/O error.
pub fn read_frame<M: DeserializeOwned>(mut from: impl Read) -> Result<M, FrameError> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match from.read(&mut length[filled..]) {
            Ok(0) if filled == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(postcard::from_bytes(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_follow_each_other_and_end_cleanly() {
        let first = Request::Exec {
            id: 7,
            argv: vec!["sh".into(), "-c".into(), "true".into()],
            env: vec![("A".into(), "b".into())],
            directory: None,
        };
        let second = Request::PowerOff;
        let mut wire = Vec::new();
        write_frame(&mut wire, &first).unwrap();
        write_frame(&mut wire, &second).unwrap();

        let mut reader = wire.as_slice();
        assert_eq!(read_frame::<Request>(&mut reader).unwrap(), first);
        assert_eq!(read_frame::<Request>(&mut reader).unwrap(), second);
        assert!(matches!(
            read_frame::<Request>(&mut reader),
            Err(FrameError::Closed)
        ));
    }

    #[test]
    fn a_cut_frame_is_an_error_wherever_it_is_cut() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &Reply::Done { id: 300 }).unwrap();
        for cut in 1..wire.len() {
            assert!(
                matches!(read_frame::<Reply>(&wire[..cut]), Err(FrameError::Io(_))),
                "cut after {cut} bytes"
            );
        }
    }

    #[test]
    fn an_announced_length_above_the_limit_is_refused_before_allocating() {
        let wire = u32::MAX.to_le_bytes();
        assert!(matches!(
            read_frame::<Reply>(&wire[..]),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn garbage_is_no_message() {
        let wire = [2, 0, 0, 0, 0xff, 0xff];
        assert!(matches!(
            read_frame::<Reply>(&wire[..]),
            Err(FrameError::Encoding(_))
        ));
    }

    #[test]
    fn a_frame_above_the_limit_is_not_written() {
        let mut wire = Vec::new();
        let reply = Reply::Content {
            id: 1,
            bytes: vec![0; MAX_FRAME],
        };
        assert!(matches!(
            write_frame(&mut wire, &reply),
            Err(FrameError::TooLong(_))
        ));
        assert!(wire.is_empty());
    }

    #[test]
    fn signals_become_shell_codes() {
        assert_eq!(ExitStatus::Exited(3).shell_code(), 3);
        assert_eq!(ExitStatus::Signaled(9).shell_code(), 137);
        assert!(ExitStatus::Exited(0).success());
        assert!(!ExitStatus::Signaled(0).success());
    }
}
