// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors of this transport.

use std::io;

use ringbar_virtio_pci::DescriptionError;

/// Reason why a connection cannot be started, or why it ended with an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No PCI function can be as the device and the options want it.
    #[error("this PCI function is not possible: {0}")]
    Function(#[from] DescriptionError),
    /// A file descriptor or thread of the connection cannot be created.
    #[error("cannot prepare a connection")]
    Resources(#[source] io::Error),
    /// The client broke the vfio-user protocol, or the socket failed.
    #[error("the connection failed: {0}")]
    Connection(#[source] crate::server::Error),
    /// A thread of the connection ended by a panic, which is a bug.
    #[error("a thread of the connection panicked")]
    Panicked,
}
