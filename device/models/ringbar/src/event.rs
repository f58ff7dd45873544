// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Delivery of events.

use ringbar_spec::{Event, QueueFault};
use vm_memory::{Bytes, GuestMemory};

use crate::chain::{Chain, ChainHead};

/// Most descriptors that a buffer of the event queue may consist of.
const MAX_BUFFERS: usize = Event::SIZE;

/// Writes events into the buffers that the driver put on the event queue.
#[derive(Debug)]
pub struct EventQueue {
    chain: Chain,
}

impl Default for EventQueue {
    fn default() -> Self {
        Self {
            chain: Chain::with_limit(MAX_BUFFERS),
        }
    }
}

impl EventQueue {
    /// Writes `event` into the chain at `head`; returns the length for the used
    /// ring.
    ///
    /// # Errors
    ///
    /// As [`Chain::read`]; in addition [`QueueFault::NoStatus`] for a chain with
    /// device-readable parts or fewer than [`Event::SIZE`] bytes, and
    /// [`QueueFault::Address`] for one outside guest memory.
    pub fn post<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: ChainHead,
        event: Event,
    ) -> Result<u32, QueueFault> {
        self.chain.read(mem, head)?;
        let bytes = event.to_bytes();
        let mut rest = &bytes[..];
        for buffer in self.chain.buffers() {
            if !buffer.writable {
                return Err(QueueFault::NoStatus);
            }
            let (piece, after) = rest.split_at(rest.len().min(buffer.len as usize));
            mem.write_slice(piece, buffer.addr)
                .map_err(|_| QueueFault::Address)?;
            rest = after;
        }
        if !rest.is_empty() {
            return Err(QueueFault::NoStatus);
        }
        Ok(Event::SIZE as u32)
    }
}
