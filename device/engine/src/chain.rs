// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Descriptor chains of a split virtqueue (VIRTIO 1.3, 2.7.5).
//!
//! `virtio_queue::DescriptorChain` ends silently at whatever it cannot follow,
//! so that a chain that was cut off looks like one that ended. Here the
//! difference decides whether a queue goes on, so the chain is walked anew, on
//! the crate's descriptor type.

use virtio_bindings::bindings::virtio_ring::VRING_DESC_ALIGN_SIZE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use crate::fault::Fault;

/// Where a descriptor chain starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// Guest address of the queue's descriptor table.
    pub table: GuestAddress,
    /// Number of descriptors in that table.
    pub queue_size: u16,
    /// Index of the first descriptor, as the available ring has it.
    pub index: u16,
}

/// One buffer of a chain: the contents of a descriptor, not yet compared with the memory
/// that the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: GuestAddress,
    /// Length in bytes, possibly 0.
    pub len: u32,
    /// Whether the device writes it (else it only reads it).
    pub writable: bool,
}

/// The buffers of one chain in order. Made to be used again for the next chain
/// without a new allocation.
#[derive(Debug)]
pub struct Chain {
    buffers: Vec<Buffer>,
    limit: usize,
}

impl Chain {
    /// A chain of at most `limit` buffers. The capacity is allocated here, once.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            buffers: Vec::with_capacity(limit),
            limit,
        }
    }

    /// The buffers that [`Self::read`] found.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Reads the chain that starts at `head`, each descriptor exactly once.
    ///
    /// # Errors
    ///
    /// [`Fault::Ring`] for a head outside the table, [`Fault::Address`] for a descriptor
    /// table outside guest memory, [`Fault::Chain`] for a chain that loops, exceeds the
    /// limit, leaves its table, or uses an indirect table against VIRTIO 1.3, 2.7.5.3.
    pub fn read<M: GuestMemory>(&mut self, mem: &M, head: ChainHead) -> Result<(), Fault> {
        self.buffers.clear();
        if head.index >= head.queue_size {
            return Err(Fault::Ring);
        }

        let mut table = head.table;
        let mut entries = head.queue_size;
        let mut indirect = false;
        let mut index = head.index;
        // A chain visits each entry of its table at most once; one that goes on
        // has come back to where it was.
        let mut left = entries;

        loop {
            if index >= entries || left == 0 {
                return Err(Fault::Chain);
            }
            left -= 1;
            let descriptor: Descriptor = table
                .checked_add(u64::from(index) * u64::from(VRING_DESC_ALIGN_SIZE))
                .and_then(|addr| mem.read_obj(addr).ok())
                .ok_or(Fault::Address)?;

            if descriptor.refers_to_indirect_table() {
                // 2.7.5.3.1: no table within a table, nothing after one, and
                // whole descriptors only, no more than an index can reach. The
                // write flag is ignored here.
                let length = descriptor.len();
                if indirect
                    || descriptor.has_next()
                    || length == 0
                    || !length.is_multiple_of(VRING_DESC_ALIGN_SIZE)
                {
                    return Err(Fault::Chain);
                }
                indirect = true;
                table = descriptor.addr();
                entries =
                    u16::try_from(length / VRING_DESC_ALIGN_SIZE).map_err(|_| Fault::Chain)?;
                left = entries;
                index = 0;
                continue;
            }

            if self.buffers.len() == self.limit {
                return Err(Fault::Chain);
            }
            self.buffers.push(Buffer {
                addr: descriptor.addr(),
                len: descriptor.len(),
                writable: descriptor.is_write_only(),
            });
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }
}
