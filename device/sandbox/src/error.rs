// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors.

use std::io;

/// Reason why a process or thread cannot be restricted. The caller must not go on as if it were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The rules make no program: they are too long, or this architecture is not supported.
    #[error("the rules for system calls make no filter")]
    Rules(#[from] seccompiler::BackendError),
    /// The kernel does not accept a filter that it supports.
    #[error("cannot restrict the system calls of the thread")]
    Filter(#[from] seccompiler::Error),
    /// The kernel does not accept restrictions of files that it supports.
    #[error("cannot restrict access to files")]
    Files(#[from] landlock::RulesetError),
    /// A directory of [`crate::Files`] cannot be opened.
    #[error("cannot restrict access to files")]
    Path(#[from] landlock::PathFdError),
    /// Capabilities cannot be given up.
    #[error("cannot give up capabilities")]
    Capabilities(#[source] io::Error),
    /// The handler of SIGSYS cannot be installed.
    #[error("cannot catch SIGSYS")]
    Signal(#[source] io::Error),
    /// A process has one sandbox.
    #[error("the process has a sandbox already")]
    Twice,
    /// No [`crate::ThreadKind`] has this name.
    #[error("there are no rules for threads of the kind \"{0}\"")]
    UnknownKind(String),
}
