// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a request of this device becomes in the end.

use ringbar_spec::Event;

use crate::executor::Outcome;
use crate::request::ParsedChain;

/// What the device writes into a completed request.
#[derive(Debug)]
pub enum Response {
    /// The status of a request.
    Status(Outcome),
    /// An event, in a buffer of the event queue.
    Event(Event),
}

/// A request of this device.
pub(crate) type Request = ringbar_engine::Request<ParsedChain, Response>;

/// What became of a request that was submitted.
pub(crate) type Submission = ringbar_engine::Submission<ParsedChain, Response>;
