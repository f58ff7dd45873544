// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can go wrong on this transport.

use std::io;

use ringbar_model::storage::ResizeError;
use ringbar_spec::ConfigError;

/// Why a device cannot be made or a connection ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options make no valid device.
    #[error("the device cannot have this configuration: {0:?}")]
    Config(ConfigError),
    /// The storage cannot be given another size.
    #[error("the device keeps its size")]
    Resize(#[source] ResizeError),
    /// More I/O queues than this transport carries.
    #[error("{0} I/O queues are too many: vhost-user carries at most {max}", max = crate::MAX_IO_QUEUES)]
    TooManyQueues(u16),
    /// The aperture would be larger than a shared memory region can be.
    #[error("device memory of {0} bytes is too large for a shared memory region")]
    ApertureSize(u64),
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
