// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rings of a split virtqueue in guest memory (VIRTIO 1.3, 2.7).

use std::sync::atomic::Ordering;

use tracing::warn;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::chain::ChainHead;
use crate::fault::Fault;

/// What a transport knows of a queue when it starts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of entries.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring.
    pub avail_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
    /// Index of the next available entry to take.
    pub next_avail: u16,
    /// Index of the next used entry to write.
    pub next_used: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
}

impl QueueSetup {
    /// Has the queue go on where it was stopped.
    pub const fn go_on_from(&mut self, stopped: StoppedAt) {
        self.next_avail = stopped.next_avail;
        self.next_used = stopped.next_used;
    }
}

/// Where a queue was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoppedAt {
    /// Index of the next available entry to take. Not 0 where the driver has broken the queue: a
    /// start at 0 means that it has reset the device.
    pub next_avail: u16,
    /// Index of the next used entry to write. Where it is behind the other, requests were
    /// not completed; they are submitted again when the queue goes on from here, in this
    /// process, or in another one that has its record.
    pub next_used: u16,
}

/// The rings of one queue.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    /// Whether the setup is one that a ring can have.
    possible: bool,
    /// The driver gets an interrupt whether it asks for one or not.
    must_interrupt: bool,
}

impl Ring {
    /// A ring without a setup, which cannot be used.
    pub(crate) fn new() -> Self {
        Self {
            queue: Queue::default(),
            possible: false,
            must_interrupt: false,
        }
    }

    /// Takes over a setup. One that no ring can have makes it unusable, see
    /// [`Self::validate`].
    pub(crate) fn set_up(&mut self, setup: &QueueSetup) {
        *self = Self::new();
        // Told again when it is stopped, whatever is wrong with the rest.
        self.queue.set_next_avail(setup.next_avail);
        self.queue.set_next_used(setup.next_used);
        if !setup.size.is_power_of_two() {
            warn!(
                size = setup.size,
                "the size of the ring is no power of two (VIRTIO 1.3, 2.7)"
            );
            return;
        }
        let Ok(mut queue) = Queue::new(setup.size) else {
            return;
        };
        let addresses = [
            queue.try_set_desc_table_address(GuestAddress(setup.desc_table)),
            queue.try_set_avail_ring_address(GuestAddress(setup.avail_ring)),
            queue.try_set_used_ring_address(GuestAddress(setup.used_ring)),
        ];
        if let Some(error) = addresses.into_iter().find_map(Result::err) {
            warn!(%error, "a part of the ring has an impossible address");
            return;
        }
        queue.set_next_avail(setup.next_avail);
        queue.set_next_used(setup.next_used);
        queue.set_event_idx(setup.event_idx);
        queue.set_ready(true);
        *self = Self {
            queue,
            possible: true,
            must_interrupt: false,
        };
    }

    /// Without a setup the ring would be wherever a new one is.
    const fn check_setup(&self) -> Result<(), Fault> {
        match self.possible {
            true => Ok(()),
            false => Err(Fault::Ring),
        }
    }

    /// Checks that the setup is possible and the rings lie within guest memory.
    pub(crate) fn validate<M: GuestMemory>(&self, mem: &M) -> Result<(), Fault> {
        self.check_setup()?;
        match self.queue.is_valid(mem) {
            true => Ok(()),
            false => Err(Fault::Ring),
        }
    }

    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    pub(crate) fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    pub(crate) fn next_used(&self) -> u16 {
        self.queue.next_used()
    }

    pub(crate) fn has_event_idx(&self) -> bool {
        self.queue.event_idx_enabled()
    }

    /// Takes the next available entry: the index of the first descriptor of its chain.
    pub(crate) fn pop<M: GuestMemory>(&mut self, mem: &M) -> Result<Option<u16>, Fault> {
        if !self.has_available(mem)? {
            return Ok(None);
        }
        // An available index that is ahead by more than the ring is an error of the iterator,
        // which says of an entry that it cannot read that there is none.
        let mut entries = self.queue.iter(mem).map_err(|_| Fault::Ring)?;
        let chain = entries.next().ok_or(Fault::Ring)?;
        Ok(Some(chain.head_index()))
    }

    /// Puts the entry that was taken last back.
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Where the descriptor chain of an entry starts.
    pub(crate) fn head(&self, index: u16) -> ChainHead {
        ChainHead {
            table: GuestAddress(self.queue.desc_table()),
            queue_size: self.queue.size(),
            index,
        }
    }

    /// Whether there is an entry to take.
    pub(crate) fn has_available<M: GuestMemory>(&self, mem: &M) -> Result<bool, Fault> {
        self.check_setup()?;
        let index = self.queue.avail_idx(mem, Ordering::Acquire);
        Ok(index.map_err(|_| Fault::Ring)?.0 != self.queue.next_avail())
    }

    /// Writes a used entry, for a chain of which the device wrote the first `len` bytes.
    pub(crate) fn push_used<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: u16,
        len: u32,
    ) -> Result<(), Fault> {
        self.queue.add_used(mem, head, len).map_err(|_| Fault::Ring)
    }

    /// Writes a used entry of a descriptor beyond the table, as an injected fault.
    pub(crate) fn push_bad_used<M: GuestMemory>(&mut self, mem: &M, len: u32) -> Result<(), Fault> {
        const INDEX: u64 = 2;
        const HEADER: u64 = 4;
        const ELEMENT: u64 = 8;
        self.check_setup()?;
        let (used_ring, next) = (self.queue.used_ring(), self.queue.next_used());
        let address = |offset| {
            let address = used_ring.checked_add(offset).map(GuestAddress);
            address.ok_or(Fault::Ring)
        };
        let entry = HEADER + ELEMENT * u64::from(next % self.queue.size());
        let element = u64::from(u32::MAX) | u64::from(len) << 32;
        mem.write_obj(element.to_le(), address(entry)?)
            .map_err(|_| Fault::Ring)?;
        let next = next.wrapping_add(1);
        mem.store(next.to_le(), address(INDEX)?, Ordering::Release)
            .map_err(|_| Fault::Ring)?;
        self.queue.set_next_used(next);
        // The queue counts only its own entries towards the next interrupt.
        self.must_interrupt = true;
        Ok(())
    }

    /// The driver need not ring the doorbell for what it makes available.
    pub(crate) fn disable_doorbell<M: GuestMemory>(&mut self, mem: &M) -> Result<(), Fault> {
        self.queue
            .disable_notification(mem)
            .map_err(|_| Fault::Ring)
    }

    /// The driver has to ring the doorbell for what it makes available. Returns whether
    /// there is something available already, for which it may not.
    pub(crate) fn enable_doorbell<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, Fault> {
        self.check_setup()?;
        self.queue.enable_notification(mem).map_err(|_| Fault::Ring)
    }

    /// Whether the driver wants an interrupt for what was used since this was last asked.
    pub(crate) fn wants_interrupt<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, Fault> {
        let wanted = self
            .queue
            .needs_notification(mem)
            .map_err(|_| Fault::Ring)?;
        Ok(std::mem::take(&mut self.must_interrupt) || wanted)
    }

    /// Up to which index the driver has taken used entries (2.7.7.1): the field behind the
    /// available ring.
    pub(crate) fn used_event<M: GuestMemory>(&self, mem: &M) -> Result<u16, Fault> {
        const HEADER: u64 = 4;
        const ELEMENT: u64 = 2;
        self.queue
            .avail_ring()
            .checked_add(HEADER + ELEMENT * u64::from(self.queue.size()))
            .and_then(|address| mem.load(GuestAddress(address), Ordering::Acquire).ok())
            .map(u16::from_le)
            .ok_or(Fault::Ring)
    }

    /// Whether the driver asks by `event` for an interrupt at an entry that is used already.
    pub(crate) fn is_past(&self, event: u16) -> bool {
        // Where it wants none, the event is further away than the ring is long.
        (1..=self.size()).contains(&self.next_used().wrapping_sub(event))
    }
}
