// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors of this transport.

use std::io;

/// Reason why a connection cannot be started, or why it ended with an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device has more queues than this transport supports.
    #[error("{0} queues are too many: vhost-user carries at most {max}", max = crate::MAX_QUEUES)]
    TooManyQueues(u16),
    /// A file descriptor or thread of the connection cannot be created.
    #[error("cannot prepare a connection")]
    Resources(#[source] io::Error),
    /// The vhost-user library reports this error.
    #[error("cannot serve the connection: {0}")]
    Backend(String),
    /// The virtual machine monitor broke the vhost-user protocol.
    #[error("the connection failed: {0}")]
    Protocol(#[source] vhost::vhost_user::Error),
    /// A thread of the connection ended by a panic, which is a bug.
    #[error("a thread of the connection panicked")]
    Panicked,
}
