// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can go wrong on this transport.

use std::io;

/// Why a connection cannot be served or ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More queues than this transport carries.
    #[error("{0} queues are too many: vhost-user carries at most {max}", max = crate::MAX_QUEUES)]
    TooManyQueues(u16),
    /// A file descriptor or thread that the connection needs cannot be had.
    #[error("cannot prepare a connection")]
    Resources(#[source] io::Error),
    /// The vhost-user library refuses, for this reason.
    #[error("cannot serve the connection: {0}")]
    Backend(String),
    /// The virtual machine monitor broke the vhost-user protocol.
    #[error("the connection failed: {0}")]
    Protocol(#[source] vhost::vhost_user::Error),
    /// A thread of the connection ended by a panic, which is a bug.
    #[error("a thread of the connection panicked")]
    Panicked,
}
