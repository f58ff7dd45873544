// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the threads of this program may do that no other device has. [`ringbar_serve::sandbox`] has
//! the rest, and docs/security.md explains both.

use libc::{SO_SNDTIMEO, SOL_SOCKET};
use ringbar_sandbox::{Call, SPAWN, Sysno, ThreadKind};
use ringbar_serve::sandbox::{ACCEPT, FLUSH, Kinds, SEND};

/// All bits of an argument of the C type `int`.
const INT: u64 = u32::MAX as u64;

/// Name of the thread that has the ring of a block storage.
pub const BLOCK_IO: &str = "block-io";

/// Name of the thread that has the connection of an NBD storage. The connection exists before the
/// thread is restricted, and is never made again.
pub const NBD_IO: &str = "nbd-io";

/// The connection to an NBD server, or TLS on it.
const CONNECTION: &[Call] = &Call::all([Sysno::readv, Sysno::recvfrom]);

/// Requests on the control socket; a resize is one. `pwrite64` tells the next worker of it.
const CONTROL_CLIENT: &[Call] = &[
    Call::any(Sysno::recvfrom),
    Call::any(Sysno::fallocate),
    Call::any(Sysno::ftruncate),
    Call::any(Sysno::pwrite64),
    // The time for which a client may leave a reply unread.
    Call::any(Sysno::setsockopt)
        .when(1, INT, SOL_SOCKET as u64)
        .when(2, INT, SO_SNDTIMEO as u64),
];

/// The kinds of threads of this program.
pub fn kinds() -> Kinds {
    Kinds {
        // The only one that may use a ring. It has one, and cannot make another.
        early: vec![
            ThreadKind::new(BLOCK_IO, &[SEND, &[Call::any(Sysno::io_uring_enter)]]),
            ThreadKind::new(NBD_IO, &[SEND, CONNECTION]),
        ],
        late: vec![
            ThreadKind::new("flusher", &[SEND, FLUSH]),
            // A "queue-worker" starts it.
            ThreadKind::new("delayer", &[SEND]),
            ThreadKind::new("control", &[SEND, CONTROL_CLIENT, ACCEPT, SPAWN]),
            ThreadKind::new("control-client", &[SEND, CONTROL_CLIENT]),
        ],
    }
}

#[cfg(test)]
mod tests;
