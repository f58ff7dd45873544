// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors of making and changing a device.

use std::io;

use ringbar_spec::ConfigError;
use ringbar_storage::ResizeError;

/// Reason why a device cannot be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options make no valid device.
    #[error("the device cannot have this configuration: {0:?}")]
    Config(ConfigError),
    /// The storage cannot change its size.
    #[error("the device keeps its size")]
    Resize(#[source] ResizeError),
    /// The aperture would be larger than a shared memory region can be.
    #[error("device memory of {0} bytes is too large for a shared memory region")]
    ApertureSize(u64),
    /// The thread for flushes cannot be started.
    #[error("cannot start the thread that flushes")]
    Flusher(#[source] io::Error),
}
