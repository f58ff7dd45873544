// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What executes single operations: io_uring, the server of an NBD connection, or a script of a
//! test.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use crate::aligned::Memory;

/// What the kernel, or a server, is to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Reads the bytes of the file from `at` on into a part of the memory.
    Read {
        at: u64,
        memory: Memory,
        part: Range<usize>,
    },
    /// Writes a part of the memory to the bytes of the file from `at` on.
    Write {
        at: u64,
        memory: Memory,
        part: Range<usize>,
    },
    /// As a write, of zeros that others write, too.
    WriteZeros {
        at: u64,
        memory: Arc<Memory>,
        part: Range<usize>,
    },
    /// `fallocate(2)`
    Allocate {
        mode: FallocateFlags,
        at: u64,
        length: u64,
    },
    /// `fdatasync(2)`
    Sync,
}

/// Which part of an operation of the storage it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The operation itself.
    Main,
    /// The first block of a write that begins within it.
    Head,
    /// The last block of a write that ends within it.
    Tail,
}

/// An operation of the kernel. It owns its memory.
#[derive(Debug)]
pub(crate) struct Io {
    /// Number of the operation of the storage.
    pub(crate) operation: u64,
    pub(crate) stage: Stage,
    pub(crate) action: Action,
}

/// Wakes the thread that waits in [`Ring::turn`], from any other thread.
pub(crate) type Waker = Arc<dyn Fn() + Send + Sync>;

/// Executes operations in any order. Belongs to one thread.
pub(crate) trait Ring: fmt::Debug {
    /// What it is, for messages.
    const NAME: &'static str;

    /// Begins an operation, now or at the next turn, or returns it where there is no room:
    /// then others are in flight, and there is room once one of them has ended.
    fn push(&mut self, io: Io) -> Result<(), Io>;

    /// Appends the operations that have ended, each with what the kernel returned: a number
    /// of bytes, 0, or a negated error number. With `wait`, returns only once there is one,
    /// or [`Waker`] was called since the last turn with `wait`; possibly earlier.
    fn turn(&mut self, wait: bool, ended: &mut Vec<(Io, i32)>) -> io::Result<()>;
}
