// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why a command has failed.

use std::io;
use std::process::ExitCode;

use ringbar_control::ClientError;

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device refused it, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// No socket was given.
    #[error("give the control socket of a device by --socket or RINGBAR_CONTROL_SOCKET")]
    NoSocket,
    /// The device has no such queue.
    #[error("the device has no queue {0}: it has the queues 0 to {1}")]
    NoQueue(u16, usize),
}

impl Error {
    /// Whether the reader of the output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The exit status, as the help describes it.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Client(ClientError::Refused(_)) | Self::Output(_) | Self::NoQueue(..) => 1,
            Self::NoSocket => 2,
            Self::Client(_) => 3,
        })
    }
}
