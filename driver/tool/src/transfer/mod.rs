// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Transfers of a range of a device in blocks, several at a time.
//!
//! | module | holds |
//! |---|---|
//! | `job` | a range as a sequence of blocks, and the order in which they are in flight |
//! | `pattern` | data that can be verified without the writer |
//! | `measurement` | rates and latencies |

pub mod job;
pub mod measurement;
pub mod pattern;
