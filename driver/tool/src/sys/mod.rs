// SPDX-License-Identifier: Apache-2.0 OR MIT

//! System calls, and memory that others change: all `unsafe` code of the program.
//!
//! | module | holds |
//! |---|---|
//! | `mapping` | a map and access to it |
//! | `control` | requests to the driver by `ioctl` |
//! | `queue` | transfers between a file and buffers: one call at a time, by `aio`, or by `uring` |
//! | `buffers` | the memory of these transfers |
//! | `sigbus` | the handler of `SIGBUS` for maps that are removed |

mod aio;
mod buffers;
pub mod control;
pub mod mapping;
pub mod queue;
pub mod sigbus;
mod uring;
