// SPDX-License-Identifier: GPL-2.0

//! A driver for a device that fills buffers of a program by itself, in the order in which the
//! program has posted them: the part that does not depend on what the device writes. For the drivers
//! of other cards (docs/own-card.md).
//!
//! A program registers its buffers once, which pins and maps them. A posted buffer is a descriptor
//! chain of queue 0: the buffer, and behind it metadata, both of which the device writes.
//!
//! | file | contents | uses |
//! |---|---|---|
//! | [`buffer`] | one buffer, pinned and mapped: [`buffer::pin`] | |
//! | [`slots`] | the buffers of a program, and who waits for them | `buffer` |
//! | [`stream`] | the device: register, post, take: [`Stream`](stream::Stream) | `slots` |
//!
//! Queue and probe are those of `simple`.

pub(crate) mod buffer;
pub(crate) mod slots;
pub(crate) mod stream;
