// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The parts of `ringbar-device` that have users other than the program: the fuzz target
//! `control_commands` executes what a client of the control socket may send.
//!
//! | module | holds |
//! |---|---|
//! | [`control`] | the control socket: requests to the running device |
//! | `statistics` | the counters as the control socket shows them |

pub mod control;
mod statistics;
