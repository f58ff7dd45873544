// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a Ringbar device does with a descriptor chain, and nothing else: no
//! sockets, no threads, no files. Transports feed it ring entries, a
//! [`Storage`] stands behind it.
//!
//! | module | holds |
//! |---|---|
//! | [`chain`] | reading a descriptor chain out of guest memory |
//! | [`request`] | validating a chain as a request |
//! | [`queue`] | executing the requests of one queue |
//! | `command` | executing commands, which work within the device memory |
//! | [`event`] | writing an event into a buffer of the event queue |
//! | [`storage`] | the trait behind which the device memory lives |
//!
//! # Trust
//!
//! Everything in guest memory is written by somebody who may be hostile and may
//! change it at any moment. Each descriptor and each header is therefore read
//! exactly once, and what was validated is the private copy. The data of a
//! request is not interpreted at all.
//!
//! A request that is wrong but has a valid place for its status is answered
//! with that status. One that cannot be answered breaks its queue: the caller
//! gets a [`QueueFault`](ringbar_spec::QueueFault) and is to serve the queue no
//! longer until the driver resets it.
//!
//! # Guest memory
//!
//! "Guest memory" is what the transport passes as such. A transport that shows
//! the device memory itself in the guest's address space (the aperture) leaves
//! that range out, so that a data segment inside the device's own aperture is
//! answered with `Invalid`: source and target would be the same bytes behind
//! two addresses, where no order of copying is right for every overlap.

pub mod chain;
mod command;
pub mod event;
pub mod queue;
pub mod request;
pub mod storage;

pub use chain::{Buffer, Chain, ChainHead};
pub use queue::{QueueRole, RequestQueue, Served};
pub use request::Limits;
pub use storage::{Storage, StorageError};
