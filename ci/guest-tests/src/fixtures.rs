// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What several suites use.
//!
//! | module | what it holds |
//! |---|---|
//! | [`driver`] | loads, removes, binds and unbinds the driver |
//! | [`device`] | what the driver says of a device |
//! | [`processes`] | child processes |
//! | [`requests`] | requests and their results |

pub mod device;
pub mod driver;
pub mod processes;
pub mod requests;
