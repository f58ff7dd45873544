// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can go wrong between the host and the guest.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ringbar_agent_protocol::FrameError;

/// Result of everything that concerns the virtual machine.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something with the virtual machine failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },

    /// The record of the set-up is missing, unreadable or out of date.
    #[error("{path}: {problem}; run `make setup`", path = path.display())]
    Setup {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// Nothing came within the time allowed.
    #[error("timed out after {} s waiting for {what}", after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },

    /// A process on the host ended before its time.
    #[error("{name} ended with {status} while {during}{tail}")]
    Ended {
        /// Which process.
        name: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it was needed for.
        during: String,
        /// The end of its log, as an excerpt.
        tail: String,
    },

    /// The guest is gone: powered off, crashed, or killed.
    #[error("the guest went away while {0}")]
    GuestGone(String),

    /// The guest could not carry out a request.
    #[error("the guest failed at {what}: {message}")]
    Guest {
        /// What it was asked for.
        what: String,
        /// What it answered.
        message: String,
    },

    /// The guest said something that makes no sense.
    #[error("unexpected answer from the guest: {0}")]
    Protocol(String),

    /// A virtio-serial port failed.
    #[error(transparent)]
    Frame(#[from] FrameError),

    /// QEMU refused a monitor command.
    #[error("QEMU refused {command}: {message}")]
    Monitor {
        /// The command.
        command: String,
        /// QEMU's description of the error.
        message: String,
    },

    /// Another error, with what the logs say about it.
    #[error("{error}{context}")]
    WithContext {
        /// The error.
        error: Box<Error>,
        /// Paragraphs with the state of the processes and the ends of the logs.
        context: String,
    },
}

impl Error {
    /// For `map_err`: the system's error while doing `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether time ran out, whatever was added to the error since.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::WithContext { error, .. } => error.is_timeout(),
            _ => false,
        }
    }
}
