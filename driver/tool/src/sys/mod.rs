// SPDX-License-Identifier: Apache-2.0 OR MIT

//! System calls, and memory that others change: all `unsafe` code of the program.
//!
//! | module | holds |
//! |---|---|
//! | `mapping` | a map and access to it |
//! | `control` | requests to the driver by `ioctl` |
//! | `sigbus` | the handler of `SIGBUS` for maps that are removed |

pub mod control;
pub mod mapping;
pub mod sigbus;
