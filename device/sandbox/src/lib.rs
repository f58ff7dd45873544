// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A process restricts itself and its threads.
//!
//! A *kind* of thread is a name with a list of system calls. The process describes its kinds, makes
//! a [`Sandbox`] of them, opens what it needs, and then restricts its threads one by one:
//!
//! ```text
//!  main ── Sandbox::new ── opens files, sockets ── restrict_first("main") ── starts a thread ──►
//!                                                                               │
//!                                                                               └ restrict("worker")
//! ```
//!
//! A thread inherits all restrictions of the thread that starts it and can only add to them. So the
//! calls of a kind include those of the kinds that it starts.
//!
//! | module | holds |
//! |---|---|
//! | `call` | [`Call`]: a system call with conditions on its arguments |
//! | `runtime` | [`RUNTIME`], [`SPAWN`]: calls of the standard library, the C library and the allocator |
//! | `filter` | from lists of calls to programs of seccomp(2) |
//! | `files` | [`Files`]: landlock(7) |
//! | `capabilities` | gives up all capabilities |
//! | `report` | [`Report`]: the line that a forbidden call leaves behind |
//! | `sandbox` | [`Sandbox`], [`ThreadKind`], [`Mode`] |
//!
//! # What it cannot do
//!
//! The threads of a process share their memory, so code that an attacker runs in one thread can
//! reach the others. The process as a whole can make the calls of all its kinds.
//!
//! This crate knows nothing of the program that uses it. It supports x86-64 and AArch64.

mod call;
mod capabilities;
mod error;
mod files;
mod filter;
mod report;
mod runtime;
mod sandbox;

pub use call::Call;
pub use error::Error;
pub use files::Files;
pub use report::{EXIT_FORBIDDEN, Report, end_process};
pub use runtime::{RUNTIME, SPAWN};
pub use sandbox::{Mode, Part, Sandbox, ThreadKind};
pub use syscalls::Sysno;
