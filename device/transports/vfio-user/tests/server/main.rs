// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The server with a back end of the tests: clients that keep to the protocol, and clients that do
//! not.

mod client;
mod connection;
mod fields;
mod hostile;
mod random;
mod replies;
mod support;
