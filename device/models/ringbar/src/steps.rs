// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is kept with a request that waits for an asynchronous storage.

use ringbar_storage::{Buffer, Completed};

/// How far a request has got that waits for a storage.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// For its next operations, or what a read has brought.
    pub(crate) buffers: Vec<Buffer>,
    /// How the operation ended that the request was resumed for.
    pub(crate) completed: Option<Completed>,
    pub(crate) phase: Phase,
}

/// How far one step of a command has got.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Phase {
    #[default]
    Begin,
    /// The first of two operations has ended.
    Second,
    /// The last operation has ended.
    Last,
}
