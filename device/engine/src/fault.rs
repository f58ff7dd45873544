// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why a queue is broken.

/// What a driver did that leaves nobody to answer. The queue is not processed any more until
/// the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A descriptor chain loops, is cut off, or is longer than allowed.
    Chain,
    /// A descriptor, or the table that it is in, lies outside guest memory.
    Address,
    /// A chain has no room for the answer.
    NoAnswer,
    /// The ring itself is inconsistent: an index beyond the ring, a size that is no power of
    /// two, an address outside guest memory.
    Ring,
}
