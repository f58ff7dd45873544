// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors of the virtual machine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ringbar_agent_protocol::FrameError;

/// Result of operations on the virtual machine.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// The failed operation.
        what: String,
        /// The system's error.
        source: io::Error,
    },

    /// The record of the set-up is missing, unreadable or out of date.
    #[error("{path}: {problem}; run `make setup`", path = path.display())]
    Setup {
        /// The record.
        path: PathBuf,
        /// The problem.
        problem: String,
    },

    /// A timeout passed.
    #[error("timed out after {} s waiting for {what}", after.as_secs())]
    Timeout {
        /// The event that did not happen.
        what: String,
        /// The timeout.
        after: Duration,
    },

    /// A process on the host ended too early.
    #[error("{name} ended with {status} while {during}{tail}")]
    Ended {
        /// Name of the process.
        name: &'static str,
        /// Exit status.
        status: std::process::ExitStatus,
        /// The operation that needed the process.
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
        /// The request.
        what: String,
        /// The guest's message.
        message: String,
    },

    /// The guest sent an unexpected message.
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

    /// Another error, with excerpts from the logs.
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

    /// Whether the error is a timeout, with or without added context.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::WithContext { error, .. } => error.is_timeout(),
            _ => false,
        }
    }
}
