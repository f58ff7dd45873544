// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why there can be no such device.

use std::io;

use ringbar_spec::ConfigError;
use ringbar_storage::ResizeError;

/// Why a device cannot be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options make no valid device.
    #[error("the device cannot have this configuration: {0:?}")]
    Config(ConfigError),
    /// The storage cannot be given another size.
    #[error("the device keeps its size")]
    Resize(#[source] ResizeError),
    /// The aperture would be larger than a shared memory region can be.
    #[error("device memory of {0} bytes is too large for a shared memory region")]
    ApertureSize(u64),
    /// There is no thread to flush on.
    #[error("cannot start the thread that flushes")]
    Flusher(#[source] io::Error),
}
